"""What operators are shown agrees with what ran: snapshots, metrics, and the line in the log."""

from __future__ import annotations

import logging
import re
from functools import partial
from types import SimpleNamespace
from typing import Any

import prometheus_client
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from property.serving import Server
from property.tokens import Shape
from rheo_sglang.config import RheoConfig
from rheo_sglang.observability.catalogue import METRICS, PREFIX
from rheo_sglang.observability.exporter import MetricsExporter
from rheo_sglang.observability.observer import Observer
from rheo_sglang.observability.snapshot import Snapshot, gather

PAGE, INTERVAL = 16, 2
CONFIG = RheoConfig(budget_ratio=0.5, budget_min_pages=2, dense_threshold=0, tail=False)
PROMPTS = [[5] * (3 * PAGE), [1, 2, 3, 4] * PAGE]
LABELS = {"model_name": "m", "tp_rank": 0}


def server() -> Server:
    made = Server(Shape(page_size=PAGE, group=2, dtype=torch.float32), CONFIG)
    requests = [made.admit(list(prompt)) for prompt in PROMPTS]
    assert all(requests)
    made.prefill(requests, chunk=4 * PAGE)
    return made


def decode(made: Server, steps: int) -> None:
    for _ in range(steps):
        made.decode(made.running, [request.tokens[0] for request in made.running])


def exporter(registry: prometheus_client.CollectorRegistry) -> MetricsExporter:
    """In a registry of its own, with SGLang's labels and classes."""
    classes = {
        "_counter_cls": partial(prometheus_client.Counter, registry=registry),
        "_gauge_cls": partial(prometheus_client.Gauge, registry=registry),
    }
    return MetricsExporter(SimpleNamespace(labels=LABELS, **classes))


def values(registry: prometheus_client.CollectorRegistry) -> dict[tuple[str, str], float]:
    """Values by name and value of the metric's label, from the text that is scraped."""
    found = {}
    for family in text_string_to_metric_families(prometheus_client.generate_latest(registry).decode()):
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                name = sample.name.removeprefix(PREFIX)
                assert {label: sample.labels[label] for label in LABELS} == {
                    "model_name": "m",
                    "tp_rank": "0",
                }
                found[name, sample.labels.get(METRICS[name].label or "", "")] = sample.value
    return found


def flat(snapshot: Snapshot) -> dict[tuple[str, str], float]:
    found: dict[tuple[str, str], float] = {}
    for name, value in snapshot.items():
        if value is not None:
            labelled = value if isinstance(value, dict) else {"": value}
            found |= {(name, key): number for key, number in labelled.items()}
    return found


def observed(made: Server, registry: prometheus_client.CollectorRegistry) -> Observer:
    return Observer(made.backend.engine, made.allocator, INTERVAL, exporter(registry), logs=True)


def test_a_snapshot_has_every_metric_and_nothing_else() -> None:
    made = server()
    engine = made.backend.engine
    for _ in range(2):
        snapshot = gather(engine, made.allocator, engine.readings.now(), None)
        assert snapshot.keys() == METRICS.keys()
        decode(made, 1)


def test_a_snapshot_agrees_with_the_report() -> None:
    made = server()
    decode(made, 3)
    engine = made.backend.engine
    snapshot = gather(engine, made.allocator, engine.readings.now(), None)
    assert engine.recorder is not None
    overall, counters = engine.recorder.report()["overall"], made.table.counters()
    assert snapshot["decode_steps_total"] == 3
    assert snapshot["decoded_tokens_total"] == 3 * len(PROMPTS)
    assert snapshot["samples_total"] == overall["samples"]
    assert snapshot["hit_rate"] == pytest.approx(overall["hit_rate"], abs=1e-4)
    assert snapshot["budget_share"] == pytest.approx(overall["selected_share"], abs=1e-4)
    assert snapshot["layer_hit_rate"] == pytest.approx(
        {str(layer): rate for layer, rate in enumerate(overall["per_layer"])}, abs=1e-4
    )
    assert snapshot["frames_used"] == counters["frames_used"] > 0
    assert snapshot["resident_pages"] == counters["pages_resident"] > 0
    assert snapshot["summarised_tokens_total"] == counters["total_summarised_tokens"]


def test_metrics_are_what_the_snapshot_says_and_counters_never_fall() -> None:
    made, registry = server(), prometheus_client.CollectorRegistry()
    watching = observed(made, registry)
    before: dict[tuple[str, str], float] = {}
    for _ in range(3):
        decode(made, INTERVAL)
        watching.poll_idle(lambda: True)
        now = values(registry)
        assert now == pytest.approx(flat(watching.snapshot()))
        counters = [key for key in before if METRICS[key[0]].kind == "counter"]
        assert all(now[key] >= before[key] for key in counters)
        before = now
    for request in list(made.running):
        made.finish(request)
    made.tree.reset()
    made.allocator.clear()
    watching.poll_idle(lambda: True)
    now = values(registry)
    assert now["frames_used", ""] == now["host_pages_used", ""] == now["resident_pages", ""] == 0
    assert now["selected_pages_total", ""] == before["selected_pages_total", ""], "a flush took counts back"
    assert now["hit_rate", ""] == before["hit_rate", ""], "the latest interval with steps is shown"


def test_averages_are_over_the_latest_interval() -> None:
    made = server()
    engine = made.backend.engine
    decode(made, 2)
    first = engine.readings.now()
    decode(made, 2)
    last = engine.readings.now()
    snapshot = gather(engine, made.allocator, last, first)
    assert first.hits is not None and last.hits is not None
    assert snapshot["budget_pages"] == (last.hits.selected - first.hits.selected) / (
        last.hits.samples - first.hits.samples
    )
    assert snapshot["selected_pages_total"] == last.hits.selected


def test_nothing_is_read_while_something_may_run() -> None:
    made, registry = server(), prometheus_client.CollectorRegistry()
    watching = observed(made, registry)
    decode(made, 1)
    watching.poll()
    busy = values(registry)
    watching.poll_idle(lambda: False)
    assert values(registry) == busy
    watching.poll_idle(lambda: True)
    assert values(registry)["decode_steps_total", ""] == 1


def test_the_log_has_a_line_for_every_interval(caplog: pytest.LogCaptureFixture) -> None:
    made = server()
    watching = observed(made, prometheus_client.CollectorRegistry())
    with caplog.at_level(logging.INFO, logger="rheo_sglang"):
        for _ in range(3 * INTERVAL):
            decode(made, 1)
            watching.poll()
        watching.poll_idle(lambda: True)
    lines = [record.message for record in caplog.records if record.message.startswith("Rheo decode, ")]
    assert len(lines) == 3
    missed = 0
    for line in lines:
        found = re.fullmatch(
            r"Rheo decode, #step: 2, hit rate: [01]\.\d{3}, #missed-page: (\d+) \(fetch: 0, cpu: (\d+)\), "
            r"budget: \d+\.\d pages \(0\.\d{3}\), #resident-page: \d+, frame usage: [01]\.\d\d, "
            r"host usage: [01]\.\d\d(, over-commit: \d+\.\d\d)?",
            line,
        )
        assert found is not None, line
        assert found[1] == found[2]
        missed += int(found[1])
    total: Any = watching.snapshot()["missed_pages_total"]
    assert missed == total["cpu"]


def test_what_is_not_recorded_is_not_in_the_line_nor_among_the_metrics(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = RheoConfig(budget_ratio=0.5, budget_min_pages=2, dense_threshold=0, tail=False, recorder="off")
    made, registry = (
        Server(Shape(page_size=PAGE, group=2, dtype=torch.float32), config),
        (prometheus_client.CollectorRegistry()),
    )
    request = made.admit(list(PROMPTS[0]))
    assert request is not None
    made.prefill([request], chunk=4 * PAGE)
    watching = observed(made, registry)
    with caplog.at_level(logging.INFO, logger="rheo_sglang"):
        decode(made, INTERVAL)
        watching.poll_idle(lambda: True)
    (line,) = [record.message for record in caplog.records if "Rheo decode" in record.message]
    assert "hit rate" not in line and "frame usage" in line
    assert not {"hit_rate", "selected_pages_total"} & {name for name, _ in values(registry)}


@pytest.mark.parametrize("name", METRICS)
def test_names_and_meanings_have_one_form(name: str) -> None:
    metric = METRICS[name]
    assert re.fullmatch(r"[a-z][a-z_]*[a-z]", name)
    assert name.endswith("_total") == (metric.kind == "counter")
    assert re.match(r"[A-Z0-9\w]", metric.meaning) and not metric.meaning.endswith(".")
