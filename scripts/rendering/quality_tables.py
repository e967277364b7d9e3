"""What the tables of docs/quality.md share: result files, rows, figures with their intervals."""

from __future__ import annotations

import json
from typing import Any

from common.measurement import RESULTS


def load(name: str) -> dict[str, Any]:
    """A result file."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def rows_of(lines: list[list[str]]) -> str:
    """A Markdown table of a header and rows."""
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def figure(metrics: dict[str, Any], key: str, scale: float = 1.0, digits: int = 3) -> str:
    """A figure with half of its 95 % interval; a dash where it was not measured."""
    if key not in metrics:
        return "-"
    value, around = metrics[key] * scale, metrics[f"{key}_ci"] * scale
    return f"{value:.{digits}f} ± {around:.{digits}f}"
