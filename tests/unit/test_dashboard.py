"""The Grafana dashboard is current, and asks for nothing that a server does not export."""

from __future__ import annotations

import inspect
import itertools
import json
import re
from typing import Any

import pytest
from sglang.srt.observability import metrics_collector

from rendering import dashboard
from rheo_sglang.observability.catalogue import METRICS, PREFIX

DASHBOARD = json.loads(dashboard.FILE.read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [(target["expr"], target["legendFormat"]) for panel in PANELS for target in panel["targets"]]
NOT_SHOWN = {"budget_pages", "budget_share", "cpu_attention_threads"}
"""The first two are what counters give for any interval."""
NAME = re.compile(r"sglang:[a-z_]+")


def names(expression: str) -> list[str]:
    return NAME.findall(expression)


def test_the_file_is_current() -> None:
    assert dashboard.FILE.read_text() == dashboard.text()


@pytest.mark.parametrize(
    ("expression", "legend"), EXPRESSIONS, ids=[expression for expression, _ in EXPRESSIONS]
)
def test_an_expression_asks_for_metrics_that_are_exported(expression: str, legend: str) -> None:
    assert names(expression)
    own = {name.removeprefix(PREFIX) for name in names(expression) if name.startswith(PREFIX)}
    assert own <= METRICS.keys()
    theirs = {name for name in names(expression) if not name.startswith(PREFIX)}
    assert all(f'name="{name}"' in inspect.getsource(metrics_collector) for name in theirs)
    for name in own:
        rate = f"rate({PREFIX}{name}{{" in expression
        assert rate == (METRICS[name].kind == "counter"), "counters are rates, gauges are not"
    labels = {METRICS[name].label for name in own}
    used = {*re.findall(r"by \((\w+)\)", expression), *re.findall(r"{{(\w+)}}", legend)}
    assert used <= labels
    assert expression.count("(") == expression.count(")")


def test_variables_ask_for_labels_of_a_metric_that_is_exported() -> None:
    queries = [one["definition"] for one in DASHBOARD["templating"]["list"] if one["type"] == "query"]
    assert len(queries) == 2
    for query in queries:
        assert {name.removeprefix(PREFIX) for name in names(query)} <= METRICS.keys()


def test_every_metric_is_on_the_dashboard() -> None:
    shown = {name.removeprefix(PREFIX) for expression, _ in EXPRESSIONS for name in names(expression)}
    assert METRICS.keys() - shown == NOT_SHOWN


def test_panels_have_numbers_and_places_of_their_own() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])

    def cells(panel: dict[str, Any]) -> set[tuple[int, int]]:
        place = panel["gridPos"]
        columns = range(place["x"], place["x"] + place["w"])
        assert columns.stop <= 24
        return set(itertools.product(columns, range(place["y"], place["y"] + place["h"])))

    taken = [cells(panel) for panel in DASHBOARD["panels"]]
    assert len(set().union(*taken)) == sum(map(len, taken)), "panels overlap"
