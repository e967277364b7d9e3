"""plot: the training curve as a picture, answer losses by task and where rows grew."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from rheo_sglang.evaluation.tasks import TASKS


def plot_history(history: list[dict[str, Any]], path: Path, threshold: float) -> None:
    """Draw the rounds of a training.

    Parameters
    ----------
    history
        As in `checkpoint.Progress`; entries without ``losses`` by task are left out.
    path
        Picture to write; its ending names the format.
    threshold
        Answer loss under which a task counts as learnt, nats a token.

    Raises
    ------
    ValueError
        When no entry has losses by task.
    """
    rounds = [entry for entry in history if "losses" in entry]
    if not rounds:
        raise ValueError("the history has 0 rounds with losses by task; the plot needs at least 1")
    figure, axes = plt.subplots(3, 1, sharex=True, figsize=(9, 10), constrained_layout=True)
    losses, accuracy, text = axes
    for task in TASKS:
        measured = [(one["step"], one["losses"][task]) for one in rounds if task in one["losses"]]
        if measured:
            losses.plot(*zip(*measured, strict=True), ".-", markersize=3, linewidth=0.8, label=task)
    losses.axhline(threshold, color="black", linewidth=0.8, linestyle=":")
    losses.set_yscale("log")
    losses.legend(ncols=3, fontsize="small")
    steps = [one["step"] for one in rounds]
    accuracy.plot(steps, [one["answer_accuracy"] for one in rounds], ".-", markersize=3, linewidth=0.8)
    text.plot(steps, [one["text_loss"] for one in rounds], ".-", markersize=3, linewidth=0.8)
    for axis, label in zip(
        axes, ("answer loss (nats/token)", "answer tokens right", "text loss (nats/token)"), strict=True
    ):
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
        for before, after in pairwise(rounds):
            if before["stage"] != after["stage"]:
                axis.axvline(before["step"], color="grey", linewidth=0.8)
    losses.set_title("rows grow to " + ", ".join(_lengths(rounds)) + " tokens", fontsize="medium")
    text.set_xlabel("step")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _lengths(rounds: list[dict[str, Any]]) -> list[str]:
    """Longest rows of each stage in order."""
    changes = [after["length"] for before, after in pairwise(rounds) if before["stage"] != after["stage"]]
    return [str(length) for length in (rounds[0]["length"], *changes)]
