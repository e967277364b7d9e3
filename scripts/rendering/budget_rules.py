"""The study of budget rules as a table and a plot: rules at an equal mean against the fixed share, and floors."""

from __future__ import annotations

import json
import math
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from common.measurement import REPOSITORY, RESULTS

NAME = "budget_rules_smollm2"
PLOT = REPOSITORY / "docs" / "benchmarks" / "budget_rules.svg"
WORDS = {
    "coverage": "top-p of the estimated attention",
    "bounded_coverage": "the same, between a quarter and four times the mean",
    "threshold": "all pages whose share exceeds a level: layers, heads and steps compete",
    "heads": "the KV heads of a layer compete for one budget",
    "profile": "a fixed share for each layer and head, from other texts",
    "error": "all pages whose estimated error exceeds a level: share x how unevenly its rows draw it x spread of V",
    "fixed_error": "fixed share, of the pages with the greatest estimated error",
    "fixed_true_share": "*oracle*: fixed share, by true shares",
    "true_share": "*oracle*: a level of the true share",
    "true_error": "*oracle*: a level of the true error",
}


def result() -> dict[str, Any]:
    """The result file."""
    found: dict[str, Any] = json.loads((RESULTS / f"{NAME}.json").read_text())
    return found


def ratio(found: dict[str, float]) -> str:
    """KL over the fixed share's, and its 95 % interval."""
    middle, around = found["log_ratio"], found["log_ratio_ci"]
    low, high = math.exp(middle - around), math.exp(middle + around)
    return f"{math.exp(middle):.2f} ({low:.2f} to {high:.2f})"


def table() -> str:
    """A row for each rule, then one for each fixed share and floor."""
    document = result()
    metrics = document["metrics"]
    rules = metrics["rules"]
    means = [mean for mean in rules["coverage"] if all(mean in rules[rule] for rule in WORDS)]
    header = ["rule", *(f"KL over a fixed share's, mean {float(mean):.0%}" for mean in means)]
    header += ["error of outputs, 95th percentile", "true coverage"]
    lines = [header, ["---"] * len(header)]
    last = means[-1]
    for rule in ("fixed", *WORDS):
        found = rules[rule]
        cells = ["1"] * len(means) if rule == "fixed" else [ratio(found[mean]) for mean in means]
        words = "fixed share" if rule == "fixed" else WORDS[rule]
        lines.append([words, *cells, f"{found[last]['error_95']:.2f}", f"{found[last]['covered']:.3f}"])
    parts = ["\n".join("| " + " | ".join(line) + " |" for line in lines)]
    lines = [
        ["selects", "of the pages, mean", "KL", "95th percentile", "same first choice", "grew"],
        ["---"] * 6,
    ]
    chosen = [(f"fixed {float(mean):.1%}", found) for mean, found in rules["fixed"].items()]
    for mean, floors in metrics["floors"].items():
        chosen += [(f"fixed {float(mean):.1%}, floor {floor}", found) for floor, found in floors.items()]
    for words, found in sorted(chosen, key=lambda one: one[1]["selected"]):
        grown = f"{found['grown']:.0%}" if "grown" in found else "-"
        kl = f"{found['kl']:.3f} ± {found['kl_ci']:.3f}"
        lines.append(
            [words, f"{found['selected']:.1%}", kl, f"{found['kl_95']:.3f}", f"{found['same']:.3f}", grown]
        )
    parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
    about = f"`{document['command']}` on {document['machine']}; {document['date']}."
    return "\n\n".join([*parts, about])


def plot() -> None:
    """KL over what is selected on average, fixed shares as a line."""
    metrics = result()["metrics"]
    plt.rcParams["svg.hashsalt"] = NAME
    figure, panel = plt.subplots(figsize=(7, 4.2), layout="constrained")
    fixed = list(metrics["rules"]["fixed"].values())
    panel.plot([one["selected"] for one in fixed], [one["kl"] for one in fixed], "k-", label="fixed share")
    marks = iter("osD^v<>Pph")
    for rule in WORDS:
        found = list(metrics["rules"][rule].values())
        oracle = rule.startswith("true") or rule.endswith("true_share")
        panel.plot(
            [one["selected"] for one in found],
            [one["kl"] for one in found],
            next(marks),
            color="C7" if oracle else None,
            label=f"{rule.replace('_', ' ')}{' (oracle)' if oracle else ''}",
        )
    for mean, floors in metrics["floors"].items():
        points = list(floors.values())
        label = f"fixed {float(mean):.0%} with a floor"
        panel.plot([one["selected"] for one in points], [one["kl"] for one in points], "x--", label=label)
    panel.set(
        xscale="log", yscale="log", xlabel="mean share of the pages", ylabel="KL from dense attention, nats"
    )
    ticks = [0.03, 0.06, 0.12, 0.25]
    panel.set_xticks(ticks, [f"{tick:.0%}" for tick in ticks])
    panel.minorticks_off()
    panel.grid(alpha=0.3)
    panel.legend(fontsize="x-small", ncol=2)
    figure.savefig(PLOT, metadata={"Date": None})
