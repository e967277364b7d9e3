#!/usr/bin/env python3
"""Write the Grafana dashboard, docs/grafana/rheo.json, from a list of its panels.

PYTHONPATH=scripts python -m rendering.dashboard
"""

from __future__ import annotations

import itertools
import json
from typing import Any

from common.measurement import REPOSITORY
from rendering.dashboard_panels import ROWS, STATS, Panel

FILE = REPOSITORY / "docs" / "grafana" / "rheo.json"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH, HEIGHT, STAT_HEIGHT = 8, 8, 4
COLUMNS = 24


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    numbers = itertools.count(1)
    panels: list[dict[str, Any]] = []
    width = COLUMNS // len(STATS)
    for place, stat in enumerate(STATS):
        position = {"h": STAT_HEIGHT, "w": width, "x": place * width, "y": 0}
        panels.append(_panel(stat, next(numbers), "stat", position))
    top = STAT_HEIGHT
    for title, row in ROWS.items():
        position = {"h": 1, "w": COLUMNS, "x": 0, "y": top}
        panels.append(
            {
                "id": next(numbers),
                "type": "row",
                "title": title,
                "collapsed": False,
                "gridPos": position,
                "panels": [],
            }
        )
        top += 1
        for place, panel in enumerate(row):
            line, column = divmod(place * WIDTH, COLUMNS)
            position = {"h": HEIGHT, "w": WIDTH, "x": column, "y": top + line * HEIGHT}
            panels.append(_panel(panel, next(numbers), "timeseries", position))
        top += -(-len(row) * WIDTH // COLUMNS) * HEIGHT
    return {
        "uid": "rheo",
        "title": "RheoServe",
        "description": "Hits, misses, frames and admission of SGLang servers with --attention-backend rheo.",
        "tags": ["sglang", "rheo"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "templating": {"list": _variables()},
        "annotations": {"list": []},
        "links": [],
        "panels": panels,
    }


def _panel(panel: Panel, number: int, kind: str, position: dict[str, int]) -> dict[str, Any]:
    queries = enumerate(panel.queries.items())
    targets = [
        {
            "refId": chr(ord("A") + place),
            "datasource": SOURCE,
            "editorMode": "code",
            "expr": expression,
            "legendFormat": legend,
            "range": kind == "timeseries",
            "instant": kind == "stat",
        }
        for place, (legend, expression) in queries
    ]
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.most is not None:
        defaults["max"] = panel.most
    if kind == "timeseries":
        stacking = {"mode": "normal" if panel.stacked else "none", "group": "A"}
        defaults["custom"] = {
            "drawStyle": "line",
            "fillOpacity": 25 if panel.stacked else 5,
            "stacking": stacking,
        }
        options: dict[str, Any] = {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    else:
        options = {
            "colorMode": "value",
            "graphMode": "none",
            "justifyMode": "auto",
            "textMode": "auto",
            "orientation": "auto",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        }
    return {
        "id": number,
        "type": kind,
        "title": panel.title,
        "description": panel.meaning,
        "datasource": SOURCE,
        "gridPos": position,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": targets,
    }


def _variables() -> list[dict[str, Any]]:
    """Where the data is, and of which models and servers."""
    known = "sglang:rheo_decode_steps_total"
    chosen = {"text": ["All"], "value": ["$__all"]}
    variables: list[dict[str, Any]] = [
        {
            "name": "datasource",
            "label": "Data source",
            "type": "datasource",
            "query": "prometheus",
            "refresh": 1,
        }
    ]
    for name, label, query in (
        ("model_name", "Model", f"label_values({known}, model_name)"),
        ("instance", "Server", f'label_values({known}{{model_name=~"$model_name"}}, instance)'),
    ):
        variables.append(
            {
                "name": name,
                "label": label,
                "type": "query",
                "datasource": SOURCE,
                "query": {"query": query, "refId": name},
                "definition": query,
                "refresh": 2,
                "sort": 1,
                "multi": True,
                "includeAll": True,
                "allValue": ".*",
                "current": chosen,
                "options": [],
            }
        )
    return variables


def text() -> str:
    """The file."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
