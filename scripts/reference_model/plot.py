"""The training curve as a picture: losses and answer accuracy by step, coloured by row length."""

from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def plot_history(history: list[dict[str, float]], path: Path) -> None:
    """Draw the logged steps of a training.

    Parameters
    ----------
    history
        As in `checkpoint.Progress`.
    path
        Picture to write; its ending names the format.
    """
    by_length: dict[int, list[dict[str, float]]] = defaultdict(list)
    for entry in history:
        by_length[int(entry["length"])].append(entry)
    panels = [
        ("answer_loss", "answer loss (nats/token)"),
        ("answer_accuracy", "answer tokens right"),
        ("text_loss", "text loss (nats/token)"),
    ]
    figure, axes = plt.subplots(len(panels), 1, sharex=True, figsize=(9, 9), constrained_layout=True)
    for axis, (key, label) in zip(axes, panels, strict=True):
        for length, entries in sorted(by_length.items()):
            steps = [entry["step"] for entry in entries]
            axis.plot(steps, [entry[key] for entry in entries], ".", markersize=3, label=f"{length} tokens")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_yscale("log")
    axes[0].legend(ncols=4, fontsize="small", markerscale=3)
    axes[-1].set_xlabel("step")
    figure.savefig(path, dpi=110)
    plt.close(figure)
