"""How well page summaries choose pages, and what a tail adds, on the keys and queries of a real model.

    PYTHONPATH=scripts python -m benchmarks.selection_quality --model CHECKPOINT --out result.json
    PYTHONPATH=scripts python -m benchmarks.selection_quality --model CHECKPOINT --length 32768 --prompts 4 \\
        --kl oracle bound rows-bf16 subcentroids --out result.json

CHECKPOINT is a directory that transformers loads (Qwen2, Llama and others with grouped-query attention). A
prompt is source code, documentation or an agent's session, made from the Python installation that runs this;
it ends in a request to quote a passage, and the passage follows. The prompt is prefilled densely; the passage's
tokens are the decode steps, all computed at once, for each of them reads the same prompt. Every step attends
one sink page, the last two pages, the new tokens and the best pages of the rest.

*Offline*, the steps run densely, and every selection is judged on the dense model's own queries: the share of
the attention that it covers (``mass``), the relative error of the attention output (``error``), and the natural
logarithm of the tail's estimated over its true mass (``bias_median``; ``bias_98`` is the 98th percentile in the
worst layer). With ``--kl``, the steps run with a selection in all layers: mean KL divergence in nats of the
next-token distribution to the dense one (``kl``), and how often both name the same token (``same``).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rheo_kernels import reference
from rheo_kernels.types.subcentroids import subcentroid_layout

SINK, WINDOW = 1, 2
KINDS = ("code", "documentation", "session")
PREFILL_CHUNK = 2048
DENSE = "sdpa"
MOST_LOG_WEIGHT = 60.0
"""Estimates beyond this, relative to the step's largest logit, are cut, so that a bad one is not infinite."""


class Summary(NamedTuple):
    """Decoded summaries of all pages of a layer."""

    rows: torch.Tensor
    """``[H, N, R, D]``, each standing for as many tokens."""
    steps: torch.Tensor | None = None
    """Quantisation step of every dimension ``[H, N, D]``, if the estimate corrects for it."""


class Choice(NamedTuple):
    """One way to select pages."""

    summary: str
    page_size: int
    row_tokens: int
    budget: float
    tail: bool

    def __str__(self) -> str:
        tail = "tail" if self.tail else "-"
        return (
            f"{self.summary:22s} page {self.page_size} rows of {self.row_tokens} {self.budget:5.1%} {tail:5s}"
        )


# ------------------------------------------------------------------------------------------------ summaries


def hadamard(dim: int, device: torch.device) -> torch.Tensor:
    """An orthogonal matrix of Hadamard's with random, fixed signs, ``[D, D]``."""
    matrix = torch.ones(1, 1)
    while len(matrix) < dim:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    signs = torch.randint(0, 2, (dim, 1), generator=torch.Generator().manual_seed(1)) * 2.0 - 1
    return (signs * matrix / dim**0.5).to(device)


def symmetric(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Rounded to ``bits`` with one bfloat16 scale for each vector."""
    top = 2 ** (bits - 1) - 1
    unit = (values.abs().amax(-1, keepdim=True) / top).bfloat16().float().clamp(min=1e-7)
    return (values / unit).round().clamp(-top, top) * unit


def asymmetric(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Rounded to ``bits`` with a bfloat16 scale and a zero point for each vector."""
    low = values.amin(-1, keepdim=True).bfloat16().float()
    unit = ((values.amax(-1, keepdim=True) - low) / (2**bits - 1)).bfloat16().float().clamp(min=1e-7)
    return ((values - low) / unit).round().clamp(0, 2**bits - 1) * unit + low


def row_means(keys: torch.Tensor, row_tokens: int) -> torch.Tensor:
    """``[H, N, P, D] -> [H, N, R, D]``."""
    return keys.unflatten(2, (-1, row_tokens)).mean(3)


def centred(means: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """Rows in 4 bits around a centre that has been rounded."""
    return centre + symmetric(means - centre, 4)


def subcentroids(keys: torch.Tensor, row_tokens: int) -> Summary:
    """What `rheo_kernels.reference.summarise_subcentroids` stores, decoded."""
    layout = subcentroid_layout(keys.shape[3], keys.shape[2], row_tokens)
    counts = torch.full(keys.shape[:2], keys.shape[2], device=keys.device)
    page = reference.decode_subcentroids(reference.summarise_subcentroids(keys, keys, counts, layout), layout)
    return Summary(page.rows, page.steps)


def rotated(compress: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor, int], Summary]:
    """A summary whose row means are rotated, compressed and rotated back."""

    def summarise(keys: torch.Tensor, row_tokens: int) -> Summary:
        turn = hadamard(keys.shape[3], keys.device)
        return Summary(compress(row_means(keys, row_tokens) @ turn) @ turn.T)

    return summarise


SUMMARIES: dict[str, Callable[[torch.Tensor, int], Summary]] = {
    "mean": lambda keys, _: Summary(keys.mean(2, keepdim=True).bfloat16().float()),
    "rows-bf16": lambda keys, n: Summary(row_means(keys, n).bfloat16().float()),
    "rows-int4": lambda keys, n: Summary(symmetric(row_means(keys, n), 4)),
    "rows-int4-zero-point": rotated(lambda rows: asymmetric(rows, 4)),
    "rows-int4-rotated": rotated(lambda rows: symmetric(rows, 4)),
    "rows-int4-global-centre": rotated(lambda rows: centred(rows, rows.mean((1, 2), keepdim=True))),
    "rows-int4-page-centre": rotated(lambda rows: centred(rows, symmetric(rows.mean(2, keepdim=True), 8))),
    "subcentroids-no-noise": lambda keys, n: Summary(subcentroids(keys, n).rows),
    "subcentroids": subcentroids,
}
"""Every summary that gives estimates, by name; ``oracle`` and ``bound`` are special."""
NAMES = ("oracle", "bound", *SUMMARIES)


# ------------------------------------------------------------------------------------------------ selection


class Layer:
    """One layer's queries, keys and values of the decode steps, and what the summaries make of them.

    Parameters
    ----------
    query
        ``[H, T, G, D]``, float32.
    keys, values
        Of the prompt and the steps, ``[H, L + T, D]``, float32.
    length
        ``L``.
    scale
        Softmax scale.
    """

    def __init__(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, length: int, scale: float
    ) -> None:
        self.heads, self.steps, self.group, self.dim = query.shape
        self.flat = query.flatten(1, 2) * scale
        self.keys, self.values, self.length = keys[:, :length], values[:, :length], length
        old = self._heads(self.flat @ self.keys.transpose(1, 2))
        new = self._heads(self.flat @ keys[:, length:].transpose(1, 2))
        future = torch.ones(self.steps, self.steps, dtype=torch.bool, device=query.device).triu(1)
        new.masked_fill_(future[:, None], -torch.inf)
        self.top = torch.maximum(old.amax(-1), new.amax(-1))[..., None]
        self.weights = (old - self.top).exp()
        recent = (new - self.top).exp()
        self.recent = self._heads(recent.flatten(1, 2) @ values[:, length:])
        self.recent_mass = recent.sum(-1)
        self.mass = self.weights.sum(-1) + self.recent_mass
        self.dense = (self._attend(self.weights) + self.recent) / self.mass[..., None]

    def _heads(self, flat: torch.Tensor) -> torch.Tensor:
        return flat.unflatten(1, (self.steps, self.group))

    def _attend(self, weights: torch.Tensor) -> torch.Tensor:
        return self._heads(weights.flatten(1, 2) @ self.values)

    def pages(self, size: int) -> torch.Tensor:
        """Keys in pages, ``[H, N, P, D]``."""
        return self.keys.unflatten(1, (-1, size))

    def page_mass(self, size: int) -> torch.Tensor:
        """Exact weights of pages, ``[H, T, G, N]``."""
        return self.weights.unflatten(-1, (-1, size)).sum(-1)

    def scores(self, choice: Choice, summary: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores ``[H, T, N]`` and estimated log weights ``[H, T, G, N]`` of pages."""
        if choice.summary == "bound":
            low, high = summary
            bound = self.flat.clamp(min=0) @ high.transpose(1, 2) + self.flat.clamp(max=0) @ low.transpose(
                1, 2
            )
            lse = self._heads(bound)
            return lse.mean(2), lse
        if choice.summary == "oracle":
            lse = self.page_mass(choice.page_size).log()
        else:
            count = summary.rows.shape[2]
            logits = self._heads(self.flat @ summary.rows.flatten(1, 2).transpose(1, 2))
            lse = (
                logits.unflatten(-1, (-1, count)).logsumexp(-1)
                + math.log(choice.page_size / count)
                - self.top
            )
            if summary.steps is not None:
                noise = self.flat.square() @ summary.steps.square().transpose(1, 2) / 24
                lse -= self._heads(noise)
        return lse.softmax(-1).mean(2), lse

    def attend(
        self, choice: Choice, scores: torch.Tensor, lse: torch.Tensor, mean_values: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Attention output ``[H, T, G, D]`` of a choice, and how it differs from the dense one."""
        count = scores.shape[-1]
        place = torch.arange(count, device=scores.device)
        scores = scores.masked_fill((place < SINK) | (place >= count - WINDOW), torch.inf)
        best = scores.topk(min(max(math.ceil(choice.budget * count), SINK + WINDOW), count), -1).indices
        chosen = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, best, True)[:, :, None]
        weights = (self.weights.unflatten(-1, (count, -1)) * chosen[..., None]).flatten(-2)
        out, mass = self._attend(weights) + self.recent, weights.sum(-1) + self.recent_mass
        found = {"mass": (mass / self.mass).mean().item()}
        if choice.tail:
            left = lse.clamp(max=MOST_LOG_WEIGHT).exp() * ~chosen
            true = (self.page_mass(choice.page_size) * ~chosen).sum(-1)
            bias = (left.sum(-1) / true).log().flatten()
            found["bias_median"], found["bias_98"] = bias.median().item(), bias.quantile(0.98).item()
            out = out + self._heads(left.flatten(1, 2) @ mean_values)
            mass = mass + left.sum(-1)
        out = out / mass[..., None]
        found["error"] = ((out - self.dense).square().sum() / self.dense.square().sum()).item()
        return out, found


class Study:
    """Attention of transformers' models during the decode steps; judges choices or carries one out.

    Parameters
    ----------
    length
        Tokens of the prompt.
    choices
        What to judge while the steps run densely.
    """

    def __init__(self, length: int, choices: list[Choice]) -> None:
        self.length = length
        self.choices = choices
        self.active: Choice | None = None
        self.found: dict[Choice, list[dict[str, float]]] = {choice: [] for choice in choices}
        self.cache: dict[tuple[Any, ...], Any] = {}

    def summary(self, index: int, layer: Layer, choice: Choice) -> Any:
        """A layer's summaries, made once."""
        key = index, choice.summary, choice.page_size, choice.row_tokens
        if key not in self.cache:
            pages = layer.pages(choice.page_size)
            if choice.summary == "bound":
                self.cache[key] = pages.amin(2).bfloat16().float(), pages.amax(2).bfloat16().float()
            elif choice.summary in SUMMARIES:
                self.cache[key] = SUMMARIES[choice.summary](pages, choice.row_tokens)
        return self.cache.get(key)

    def mean_values(self, index: int, layer: Layer, size: int) -> torch.Tensor:
        """Mean V of pages in 4 bits, ``[H, N, D]``."""
        key = index, "values", size
        if key not in self.cache:
            self.cache[key] = symmetric(layer.values.unflatten(1, (-1, size)).mean(2), 4)
        return self.cache[key]

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        """Attention function as `transformers.AttentionInterface` calls it."""
        heads, index = key.shape[1], int(module.layer_idx)  # type: ignore[arg-type]
        grouped = query[0].float().unflatten(0, (heads, -1)).transpose(1, 2)
        layer = Layer(grouped, key[0].float(), value[0].float(), self.length, scaling)
        out, known = layer.dense, {}
        for choice in self.choices if self.active is None else [self.active]:
            which = choice.summary, choice.page_size, choice.row_tokens
            if which not in known:
                known[which] = layer.scores(choice, self.summary(index, layer, choice))
            mean_values = self.mean_values(index, layer, choice.page_size)
            result, found = layer.attend(choice, *known[which], mean_values)
            if self.active is None:
                self.found[choice].append(found)
            else:
                out = result
        return out.transpose(1, 2).flatten(0, 1).transpose(0, 1)[None].to(query.dtype), None


# ------------------------------------------------------------------------------------------------ prompts


def texts(kind: str, rng: random.Random) -> list[str]:
    """Pieces of real text in random order."""
    if kind == "documentation":
        from pydoc_data.topics import topics

        pieces = [f"## {name}\n\n{text}\n" for name, text in sorted(topics.items()) if len(text) > 300]
    else:
        files = [path for path in sorted(Path(os.__file__).parent.glob("*.py")) if path.stat().st_size > 4000]
        pieces = [f"# {path.name}\n{path.read_text(errors='replace')}\n" for path in files]
    rng.shuffle(pieces)
    return pieces


def make_prompt(tokenizer: Any, kind: str, length: int, steps: int, seed: int) -> list[int]:
    """``length`` tokens that end in a request to quote a passage, and ``steps`` tokens of that passage."""
    rng = random.Random(f"{kind} {seed}")

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    ids: list[int] = []
    pieces = texts(kind, rng)
    while len(ids) < length:
        piece = encode(pieces.pop())
        if kind == "session":
            piece = (
                encode("\nuser: <tool_response>\n")
                + piece[:1200]
                + encode("\n</tool_response>\nassistant: Next.\n")
            )
        ids += piece
    at = rng.randrange(length // 3, 2 * length // 3)
    begin = tokenizer.decode(ids[at - 24 : at])
    ask = encode(f"\nuser: Quote the passage above that begins with:\n{begin}\nassistant: It says:\n{begin}")
    return ids[: length - len(ask)] + ask + ids[at : at + steps]


# ------------------------------------------------------------------------------------------------ measurement


@torch.inference_mode()
def measure(
    model: Any, ids: list[int], steps: int, judged: list[Choice], run: list[Choice]
) -> dict[Choice, dict[str, float]]:
    """Judge and run choices on one prompt."""
    from transformers import AttentionInterface, DynamicCache

    length = len(ids) - steps
    tokens = torch.tensor([ids], device=model.device)
    cache = DynamicCache(config=model.config)
    model.set_attn_implementation(DENSE)
    for start in range(0, length, PREFILL_CHUNK):
        chunk = tokens[:, start : min(start + PREFILL_CHUNK, length)]
        model(input_ids=chunk, past_key_values=cache, logits_to_keep=1)
    study = Study(length, judged)
    AttentionInterface.register("study", study)
    model.set_attn_implementation("study")

    def decode() -> torch.Tensor:
        logits = model(input_ids=tokens[:, length:], past_key_values=cache).logits[0]
        cache.crop(-steps)
        return logits.float().log_softmax(-1)

    dense = decode()
    result: dict[Choice, dict[str, float]] = {}
    for choice, layers in study.found.items():
        row = result[choice] = {name: sum(x[name] for x in layers) / len(layers) for name in layers[0]}
        row["error"] = row["error"] ** 0.5
        if choice.tail:
            row["bias_98"] = max(x["bias_98"] for x in layers)
    for choice in run:
        study.active = choice
        sparse = decode()
        row = result.setdefault(choice, {})
        row["kl"] = (dense.exp() * (dense - sparse)).sum(-1).mean().item()
        row["same"] = (dense.argmax(-1) == sparse.argmax(-1)).float().mean().item()
    return result


def make_choices(names: list[str], geometries: list[tuple[int, int]], budgets: list[float]) -> list[Choice]:
    """All combinations; a bound estimates nothing, so it has no tail."""
    return [
        Choice(name, size, row_tokens, budget, tail)
        for size, row_tokens in geometries
        for name in names
        for budget in budgets
        for tail in ((False,) if name == "bound" else (False, True))
    ]


def geometry(text: str) -> tuple[int, int]:
    """``page size:tokens of a row``."""
    size, row_tokens = text.split(":")
    return int(size), int(row_tokens)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--length", type=int, default=4096, help="tokens of a prompt")
    parser.add_argument("--steps", type=int, default=32, help="decode steps of a prompt")
    parser.add_argument("--prompts", type=int, default=1, help="of each kind")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--summaries", nargs="*", choices=NAMES, default=list(NAMES), help="to judge offline")
    parser.add_argument("--kl", nargs="*", choices=NAMES, default=["oracle", "bound", "subcentroids"])
    parser.add_argument(
        "--geometries", nargs="+", type=geometry, default=[(32, 4), (16, 2)], metavar="PAGE:ROW"
    )
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.02, 0.04])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2, help="of a CPU")
    arguments = parser.parse_args()
    for size, _ in arguments.geometries:
        if arguments.length % size:
            parser.error(f"--length {arguments.length} is no multiple of the page size {size}")

    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(arguments.threads)
    tokenizer = Tokenizer.from_file(str(arguments.model / "tokenizer.json"))
    model = AutoModelForCausalLM.from_pretrained(
        arguments.model, dtype=torch.bfloat16, attn_implementation=DENSE
    )
    model = model.eval().to(arguments.device)
    judged = make_choices(arguments.summaries, arguments.geometries, arguments.budgets)
    run = make_choices(arguments.kl, arguments.geometries, arguments.budgets)
    results, began = [], time.monotonic()
    for seed in range(arguments.prompts):
        for kind in arguments.kinds:
            encoded = make_prompt(_Encoder(tokenizer), kind, arguments.length, arguments.steps, seed)
            results.append(measure(model, encoded, arguments.steps, judged, run))
            print(f"{time.monotonic() - began:6.0f} s  {kind} {seed}", file=sys.stderr, flush=True)

    table = []
    for choice in dict.fromkeys([*judged, *run]):
        rows = [result[choice] for result in results]
        mean = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
        table.append({**choice._asdict(), **mean, "prompts": rows})
        print(choice, " ".join(f"{name} {value:7.4f}" for name, value in mean.items()))
    settings = {name: str(value) for name, value in vars(arguments).items() if name not in ("model", "out")}
    arguments.out.write_text(json.dumps({"settings": settings, "choices": table}, indent=1) + "\n")


class _Encoder:
    """Token ids of text, and back."""

    def __init__(self, tokenizer: Any) -> None:
        self.decode = tokenizer.decode
        self._encode = tokenizer.encode

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Token ids."""
        return self._encode(text, add_special_tokens=add_special_tokens).ids


if __name__ == "__main__":
    main()
