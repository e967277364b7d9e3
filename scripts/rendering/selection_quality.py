"""The study of page summaries: tables by bytes, a plot of error over bytes, heat maps of coverage by layer and head."""

from __future__ import annotations

import json
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from common.measurement import REPOSITORY, RESULTS

MODELS = {"selection_quality_smollm2": "SmolLM2-135M", "selection_quality_coder": "Coder-0.5B"}
PLOTS = REPOSITORY / "docs" / "benchmarks"
FRONT, HEADS = PLOTS / "selection_quality.svg", PLOTS / "selection_heads.svg"
BUDGETS, SHOWN = ("0.02", "0.04", "0.08"), "0.04"
DEFAULT, DEFAULT_PAGE = "subcentroids4", "32"
SERVED = ("bound", "mean", "subcentroids2", "subcentroids4", "subcentroids8")
"""What the setting `summary` has."""
FAMILIES = {
    "bound": "bound",
    "mean": "mean",
    "subcentroids": "4 bits around the page's centre (served)",
    "bf16": "bf16",
    "int8": "8 bits",
    "rotated": "4 bits, rotated",
    "rotated-page": "4 bits, rotated, the page's centre",
    "rotated-global": "4 bits, rotated, one centre for all pages",
    "clusters": "clusters instead of consecutive tokens",
    "outlier": "one for the token farthest from the mean",
    "variance": "served, with a variance",
    "rank": "local low rank",
}


def result(name: str) -> dict[str, Any]:
    """A result file."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def family(kind: str) -> str:
    """What a kind differs from others of its family in is the length of its rows, or its rank."""
    first, _, rest = kind.partition("-")
    return rest or first.rstrip("0123456789")


def words(kind: str) -> str:
    """A kind as rows of a table name it."""
    if kind in SERVED:
        return f"`{kind}`{', the default' if kind == DEFAULT else ''}"
    number = kind.partition("-")[0].lstrip("abcdefghijklmnopqrstuvwxyz")
    if family(kind) == "rank":
        return f"mean and rank {number}, 8 bits"
    return f"rows of {number}: {FAMILIES[family(kind)]}" if number else kind


def output_error(one: dict[str, Any]) -> float:
    """Error of what would be served: with a tail if the kind has one."""
    found: float = one.get("error_tail", one["error"])
    return found


def front(kinds: dict[str, Any]) -> set[str]:
    """Kinds of which no other has less error for as many bytes or fewer."""
    sized = {kind: one for kind, one in kinds.items() if one["bytes"] is not None}
    return {
        kind
        for kind, one in sized.items()
        if not any(
            other["bytes"] <= one["bytes"] and output_error(other[SHOWN]) < output_error(one[SHOWN])
            for other in sized.values()
        )
    }


def cells(one: dict[str, Any], best: bool) -> list[str]:
    """A model's figures of one kind."""
    shown = one[SHOWN]
    error = f"{output_error(shown):.3f}"
    ratio, least, greatest = shown["error_ratio"]
    bias = "-"
    if "bias_98" in shown:
        bias = f"{shown['bias_median']:+.2f} / {shown['bias_98']:+.2f} / {shown['worst']['bias_98'][0]:+.1f}"
    return [
        " / ".join(f"{one[budget]['mass']:.3f}" for budget in BUDGETS),
        f"{shown['worst']['mass'][0]:.2f}",
        f"{shown['error']:.3f} / "
        + ("-" if "error_tail" not in shown else f"**{error}**" if best else error),
        f"{ratio:.2f} ({least:.2f} to {greatest:.2f})",
        bias,
    ]


def table(page_size: str) -> str:
    """A row for each kind, by bytes."""
    models = {name: result(name)["metrics"]["pages"][page_size] for name in MODELS}
    fronts = {name: front(kinds) for name, kinds in models.items()}
    header = ["summary", "% of KV"]
    for model in MODELS.values():
        header += [
            f"{model}: covered at 2 / 4 / 8 % of the pages",
            "worst head",
            "error without / with tail",
            "over the default's",
            "bias: median / 98th percentile / worst head's",
        ]
    lines = [header, ["---"] * len(header)]
    first = next(iter(models.values()))
    for kind in sorted(first, key=lambda kind: first[kind]["bytes"] or 1 << 30):
        share = first[kind].get("share_of_kv")
        row = [words(kind) if share else f"*{kind}*", f"{share:.1%}"[:-1] if share else "-"]
        for name, kinds in models.items():
            row += cells(kinds[kind], kind in fronts[name])
        lines.append(row)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def layers() -> str:
    """Medians of the served kinds in thirds of the layers, and the worst head."""
    lines = [
        [
            "model, summary",
            "covered, by thirds of the layers",
            "error with tail, by thirds",
            "layer covered least",
            "head covered least",
            "head with the greatest error",
        ]
    ]
    lines.append(["---"] * len(lines[0]))
    for name, model in MODELS.items():
        kinds = result(name)["metrics"]["pages"][DEFAULT_PAGE]
        for kind in ("bound", DEFAULT, "oracle"):
            by_layer = kinds[kind]["layers"]
            worst = kinds[kind][SHOWN]["worst"]
            mass = by_layer["mass"]
            errors = by_layer["error"]
            least = int(np.argmin(mass))
            wrong = worst.get("error_tail", worst["error"])
            lines.append(
                [
                    f"{model}, `{kind}`{', no tail' if kind == 'bound' else ''}",
                    *(
                        " / ".join(f"{np.median(part):.3f}" for part in np.array_split(figures, 3))
                        for figures in (mass, errors)
                    ),
                    f"{least}: {mass[least]:.3f}",
                    *(
                        f"layer {layer}, head {head}: {value:.3f}"
                        for value, layer, head in (worst["mass"], wrong)
                    ),
                ]
            )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def tables() -> str:
    """Both page sizes, layers, and where the figures come from."""
    about = []
    for name in MODELS:
        document = result(name)
        metrics = document["metrics"]
        about.append(
            f"{MODELS[name]}: {len(metrics['prompts'])} prompts of {metrics['steps']} steps; "
            f"`{document['command']}` on {document['machine']}; {document['date']}."
        )
    return "\n\n".join(
        [
            "Pages of 32:",
            table("32"),
            "Pages of 16:",
            table("16"),
            "By layer, pages of 32 at 4 %:",
            layers(),
            *about,
        ]
    )


def plot() -> None:
    """Error over bytes, a panel for each model and page size; and the default's coverage by layer and query head."""
    plt.rcParams["svg.hashsalt"] = "selection_quality"
    figure, panels = plt.subplots(
        2, len(MODELS), figsize=(5.5 * len(MODELS), 8), layout="constrained", squeeze=False
    )
    for column, (name, model) in enumerate(MODELS.items()):
        for row, page_size in enumerate(("32", "16")):
            panel, kinds = panels[row][column], result(name)["metrics"]["pages"][page_size]
            marks = iter("sPoxd^v<*XpD")
            for key, label in FAMILIES.items():
                found = sorted(
                    (one["share_of_kv"], output_error(one[SHOWN]))
                    for kind, one in kinds.items()
                    if family(kind) == key and one["bytes"] is not None
                )
                style = {"color": "black", "linewidth": 2} if key == "subcentroids" else {"linewidth": 0.8}
                panel.plot(*zip(*found, strict=True), marker=next(marks), label=label, **style)
            panel.axhline(output_error(kinds["oracle"][SHOWN]), color="C7", linestyle=":", label="oracle")
            ticks = [0.02, 0.04, 0.08, 0.16]
            panel.set(xscale="log", yscale="log", title=f"{model}, page {page_size}")
            panel.set_xticks(ticks, [f"{tick:.0%}" for tick in ticks])
            panel.xaxis.set_minor_formatter("")
            panel.set(xlabel="summaries, share of the KV's bytes", ylabel="error of outputs at 4 %")
            panel.grid(alpha=0.3)
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncol=2)
    figure.savefig(FRONT, metadata={"Date": None})
    figure, heat = plt.subplots(
        1, len(MODELS), figsize=(5 * len(MODELS), 6), layout="constrained", squeeze=False
    )
    for panel, (name, model) in zip(heat[0], MODELS.items(), strict=True):
        mass = np.array(result(name)["metrics"]["mass_by_head"])
        shown = panel.pcolormesh(mass, vmin=0, vmax=1, cmap="viridis", edgecolors="white", linewidth=0.2)
        panel.invert_yaxis()
        panel.set(title=f"{model}: {DEFAULT}, page {DEFAULT_PAGE}, 4 %", xlabel="query head", ylabel="layer")
    figure.colorbar(shown, ax=heat[0].tolist(), label="share of the attention that is covered")
    figure.savefig(HEADS, metadata={"Date": None})
