"""Means and intervals of scores by task and length, differences of two servers, and their table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from rheo_sglang.evaluation.conversations import Conversation
from rheo_sglang.evaluation.intervals import paired_difference, score_half_width
from rheo_sglang.evaluation.report import metric_name


def groups(conversations: Sequence[Conversation]) -> dict[str, list[str]]:
    """Keys of conversations by what figures are given of: task and length, a length (``mean_8k``), all (``mean``)."""
    found: dict[str, list[str]] = {}
    for one in conversations:
        found.setdefault(metric_name(one.task, one.length), []).append(one.key)
    for one in conversations:
        found.setdefault(metric_name("mean", one.length), []).append(one.key)
    found["mean"] = [one.key for one in conversations]
    return found


def summarise(conversations: Sequence[Conversation], scores: Mapping[str, float]) -> dict[str, Any]:
    """Every group's mean score in [0, 1], and half of its 95 % interval as ``NAME_ci``."""
    metrics: dict[str, Any] = {}
    for name, keys in groups(conversations).items():
        values = [scores[key] for key in keys]
        metrics[name] = round(fmean(values), 5)
        metrics[f"{name}_ci"] = round(score_half_width(values), 5)
    return metrics


def differences(
    conversations: Sequence[Conversation], scores: Mapping[str, float], compared: Mapping[str, float]
) -> dict[str, Any]:
    """Every group's mean of what is compared, and how far the scores are above it, paired, with half an interval."""
    metrics: dict[str, Any] = {}
    for name, keys in groups(conversations).items():
        one, other = ([of[key] for key in keys] for of in (scores, compared))
        difference, half = paired_difference(one, other)
        metrics[f"{name}_compared"] = round(fmean(other), 5)
        metrics[f"{name}_difference"] = round(difference, 5)
        metrics[f"{name}_difference_ci"] = round(half, 5)
    return metrics


def table(conversations: Sequence[Conversation], metrics: Mapping[str, Any]) -> str:
    """A line for each task, a column for each length: mean score and half an interval, and differences below it."""
    lengths = sorted({one.length for one in conversations})
    tasks = list(dict.fromkeys(one.task for one in conversations))
    lines = [f"{'task':18}" + "".join(f"{length:>16}" for length in lengths)]
    for task in (*tasks, "mean"):
        names = [metric_name(task, length) for length in lengths]
        lines.append(f"{task:18}" + "".join(cell(metrics, name, f"{name}_ci") for name in names))
        if f"{names[0]}_difference" in metrics:
            cells = (cell(metrics, f"{name}_difference", f"{name}_difference_ci", "+") for name in names)
            lines.append(f"{'  difference':18}" + "".join(cells))
    lines.append(f"all: {cell(metrics, 'mean', 'mean_ci').strip()}")
    if "mean_difference" in metrics:
        lines[-1] += f", compared {metrics['mean_compared']:.3f}, difference "
        lines[-1] += cell(metrics, "mean_difference", "mean_difference_ci", "+").strip()
    return "\n".join(lines)


def cell(metrics: Mapping[str, Any], name: str, half: str, sign: str = "") -> str:
    """A figure and half of its interval; empty where there is none."""
    if name not in metrics:
        return " " * 16
    return f"{metrics[name]:{sign}.3f} +- {metrics[half]:.3f}".rjust(16)
