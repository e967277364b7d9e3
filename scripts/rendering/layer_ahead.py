#!/usr/bin/env python3
"""Draw the tables of docs/benchmarks/layer-ahead.md from results of studies/layer_ahead.py and benchmarks/kernels.py.

PYTHONPATH=scripts python -m rendering.layer_ahead
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from common.measurement import RESULTS
from common.qwen3_shape import CONFIG
from rendering.marked_page import fill
from rendering.results import PLOTS, provenance, table

PAGE = PLOTS / "layer-ahead.md"
MODELS = ("smollm2", "reference")
PREDICTORS = {"layer_input": "layer input", "before_mlp": "before MLP"}
GROUPS = (
    ("smollm2", "text", "SmolLM2, text"),
    ("reference", "text", "rheo-reference, text"),
    ("reference", "questions", "rheo-reference, questions"),
)

QWEN3: dict[str, Any] = dict(CONFIG)
OTHER_US = 130.0
"""A decode step's time a layer for everything but attention."""
PCIE_GBPS = 50.0
BLOCK_BYTES = 16384
"""K and V of one page of 32 tokens in one KV head."""
PAGE_SIZE, BUDGET, POLICY = 32, "0.1", "importance"
CONTEXTS, BATCHES = {"32k": 32768, "128k": 131072}, (1, 4, 8)


@dataclass(frozen=True)
class Layer:
    """Times of one layer of a decode step of Qwen3-8B that fetches its misses, in microseconds.

    Attributes
    ----------
    misses_us
        Transfer of all misses.
    attend_us
        Attention over the hits, which the transfer overlaps.
    select_us
        Score, select and resolve.
    predict_us
        The next layer's queries projected, scored, selected and resolved once more, concurrently with other work.
    stolen_us
        The time the device's memory needs for the prediction's bytes.
    """

    misses_us: float
    attend_us: float
    select_us: float
    predict_us: float
    stolen_us: float

    @property
    def plain_us(self) -> float:
        """Time of the layer without a prediction."""
        return OTHER_US + self.select_us + max(self.attend_us, self.misses_us)

    def window_us(self, predictor: str) -> float:
        """How long PCIe is free for a prediction before the next layer attends.

        From the layer's input on, the prediction is made while this layer attends, and all the rest of the layer
        is left. After the attention, the prediction must be made first, and what the output projection
        takes has passed.
        """
        if predictor == "layer_input":
            return OTHER_US
        mlp, projections, output = weights()
        return max(OTHER_US * (mlp + projections) / (mlp + projections + output) - self.predict_us, 0.0)

    def ahead_us(self, predictor: str, figures: dict[str, float]) -> tuple[float, float]:
        """Transfer time that is saved, and the layer's time, with a prediction of these figures."""
        fetched_us = self.misses_us * figures["miss_recall"] * (1 + figures["vain_per_useful"])
        moved_us = min(fetched_us, self.window_us(predictor))
        saved_us = moved_us / (1 + figures["vain_per_useful"])
        left_us = self.misses_us - saved_us
        idle_us = max(left_us - self.attend_us, 0.0) if predictor == "layer_input" else 0.0
        stolen_us = max(self.stolen_us - idle_us, 0.0)
        return saved_us, OTHER_US + self.select_us + stolen_us + max(self.attend_us, left_us)


def weights() -> tuple[int, int, int]:
    """Weights of a layer of Qwen3-8B: the MLP's, those of the query, key and value projections, the output's."""
    hidden, dim = QWEN3["hidden_size"], QWEN3["head_dim"]
    queries, keys = QWEN3["num_attention_heads"] * dim, QWEN3["num_key_value_heads"] * dim
    return 3 * hidden * QWEN3["intermediate_size"], hidden * (queries + 2 * keys), hidden * queries


def layers(kernels: dict[str, float], hit_rate: float, forced: int) -> Iterator[tuple[str, int, int, Layer]]:
    """Context, batch, missed blocks and times of each case that the kernels were timed for."""
    query_bytes = 2 * QWEN3["hidden_size"] * QWEN3["num_attention_heads"] * QWEN3["head_dim"]
    for context, tokens in CONTEXTS.items():
        pages = math.ceil(tokens / PAGE_SIZE)
        for batch in BATCHES:
            tag = f"bs{batch}_{context}"
            retrieved = math.ceil(pages * float(BUDGET)) - forced
            misses = round(retrieved * batch * QWEN3["num_key_value_heads"] * (1 - hit_rate))
            query_us = query_bytes / kernels["device_copy_gbps"] / 1e3
            path_us = kernels[f"select_path_us_{tag}"]
            moved_us = kernels[f"select_path_mb_{tag}"] / kernels["device_copy_gbps"] * 1e3
            yield (
                context.upper(),
                batch,
                misses,
                Layer(
                    misses * BLOCK_BYTES / PCIE_GBPS / 1e3,
                    kernels[f"attend_us_{tag}"],
                    path_us,
                    query_us + path_us,
                    query_us + moved_us,
                ),
            )


def prediction(metrics: dict[str, Any]) -> str:
    """Every page size, budget and predictor of SmolLM2, predictions as large as the selection."""
    rows = []
    for page_size in (16, 32):
        for budget, case in metrics["text"][f"page{page_size}"].items():
            for kind, name in PREDICTORS.items():
                found = case[kind]["1.0"]
                cells: list[Any] = [
                    f"{page_size}, {float(budget):.0%}",
                    name,
                    f"{case['selection_recall_last_step']:.3f}",
                    f"{found['selection_recall']:.3f}",
                ]
                for policy in ("lru", "importance"):
                    one = found[policy]
                    cells += [
                        f"{one['miss_recall']:.3f}",
                        f"{one['vain_per_useful']:.2f}",
                        f"{one['hit_rate']:.3f} to {one['hit_rate_ahead']:.3f}",
                    ]
                rows.append(cells)
    header = ["page, budget", "predicted from", "pages of the step before", "selection predicted"]
    for policy in ("LRU", "importance"):
        header += [f"{policy}: misses predicted", "in vain for one useful", "hit rate"]
    return table(header, rows)


def models(results: dict[str, dict[str, Any]]) -> str:
    """All models at one page size and budget, with predictions as large as the selection and larger."""
    rows = []
    for model, group, name in GROUPS:
        measured = results[model]["metrics"][group]
        case = measured[f"page{PAGE_SIZE}"][BUDGET]
        for kind, predictor in PREDICTORS.items():
            for width, found in case[kind].items():
                one = found[POLICY]
                rows.append(
                    [
                        name,
                        predictor,
                        f"{measured['query_cosine'][kind]:.3f}",
                        f"{float(width):g}x",
                        f"{found['selection_recall']:.3f}",
                        f"{one['miss_recall']:.3f}",
                        f"{one['vain_per_useful']:.2f}",
                        f"{one['hit_rate']:.3f} to {one['hit_rate_ahead']:.3f}",
                    ]
                )
    header = [
        "model",
        "predicted from",
        "cosine of queries",
        "pages predicted",
        "selection predicted",
        "misses predicted",
        "in vain for one useful",
        "hit rate",
    ]
    return table(header, rows)


def gains(case: dict[str, Any], kernels: dict[str, float], forced: int) -> str:
    """What a layer's time becomes, by context and batch."""
    figures = {kind: case[kind]["1.0"][POLICY] for kind in PREDICTORS}
    rows = []
    for context, batch, misses, layer in layers(kernels, figures["layer_input"]["hit_rate"], forced):
        row = [
            f"{context}, {batch}",
            misses,
            f"{misses * BLOCK_BYTES / 1e6:.1f} MB, {layer.misses_us:.0f} us",
            f"{layer.plain_us:.0f} us",
        ]
        for kind, found in figures.items():
            saved_us, ahead_us = layer.ahead_us(kind, found)
            row += [f"{saved_us:.0f} us", f"{ahead_us:.0f} us, {ahead_us / layer.plain_us - 1:+.0%}"]
        rows.append(row)
    header = ["context, batch", "missed pages", "transfer", "layer"]
    for name in PREDICTORS.values():
        header += [f"{name}: saved", "layer then"]
    return table(header, rows)


def tables(results: dict[str, dict[str, Any]], kernels: dict[str, Any]) -> str:
    """All tables and where their figures come from."""
    small = results["smollm2"]["metrics"]
    case = small["text"][f"page{PAGE_SIZE}"][BUDGET]
    forced = small["sink_pages"] + small["window_pages"]
    return "\n\n".join(
        [
            f"SmolLM2 at {small['context_tokens']} tokens, as many pages predicted as selected:",
            prediction(small),
            f"Page {PAGE_SIZE}, budget {float(BUDGET):.0%}, importance policy; rheo-reference at "
            f"{results['reference']['metrics']['context_tokens']} tokens:",
            models(results),
            f"One layer of Qwen3-8B in `fetch` mode, page {PAGE_SIZE}, budget {float(BUDGET):.0%}, hit rate and "
            f"prediction of SmolLM2 under the importance policy; {OTHER_US:.0f} us for everything but attention, "
            f"{PCIE_GBPS:.0f} GB/s, {BLOCK_BYTES // 1024} KB a page and KV head:",
            gains(case, kernels["metrics"], forced),
            *(provenance(result) for result in results.values()),
            f"Times of kernels: {provenance(kernels)}",
        ]
    )


def main() -> None:
    """Replace what stands between the markers of the page."""
    results = {model: json.loads((RESULTS / f"layer_ahead_{model}.json").read_text()) for model in MODELS}
    kernels = json.loads((RESULTS / "kernels_gpu.json").read_text())
    fill(PAGE, "layer_ahead", tables(results, kernels))


if __name__ == "__main__":
    main()
