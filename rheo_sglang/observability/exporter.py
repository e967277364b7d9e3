"""MetricsExporter: sets the metrics of a scheduler's process from snapshots."""

from __future__ import annotations

from typing import Any

from rheo_sglang.observability.catalogue import METRICS, PREFIX
from rheo_sglang.observability.snapshot import Snapshot


class MetricsExporter:
    """Metrics beside those of SGLang's collector, with its labels, in the registry that its ``/metrics`` reads.

    A metric appears once its number is known.

    Parameters
    ----------
    collector
        SGLang's ``SchedulerMetricsCollector``: its labels, and the classes that it makes metrics of.
    """

    def __init__(self, collector: Any) -> None:
        # prometheus_client looks at its environment when it is imported: not before SGLang has set that.
        import prometheus_client

        self.labels = dict(collector.labels)
        classes: dict[str, Any] = {
            "counter": collector._counter_cls or prometheus_client.Counter,
            "gauge": collector._gauge_cls or prometheus_client.Gauge,
        }
        self._metrics: dict[str, Any] = {}
        self._counted: dict[tuple[str, str], float] = {}
        for name, metric in METRICS.items():
            options = {"multiprocess_mode": "mostrecent"} if metric.kind == "gauge" else {}
            self._metrics[name] = classes[metric.kind](
                name=PREFIX + name,
                documentation=metric.meaning + ".",
                labelnames=[*self.labels, *([metric.label] if metric.label else [])],
                **options,
            )

    def export(self, snapshot: Snapshot) -> None:
        """Set gauges, and raise counters to what they are now."""
        for name, metric in METRICS.items():
            value = snapshot[name]
            if isinstance(value, dict):
                assert metric.label is not None
                for key, number in value.items():
                    self._set(name, key, number, {metric.label: key})
            elif value is not None:
                self._set(name, "", value, {})

    def _set(self, name: str, key: str, number: float, label: dict[str, str]) -> None:
        metric = self._metrics[name].labels(**self.labels, **label)
        if METRICS[name].kind == "gauge":
            metric.set(number)
            return
        before = self._counted.get((name, key), 0)
        metric.inc(max(number - before, 0))
        self._counted[name, key] = max(number, before)
