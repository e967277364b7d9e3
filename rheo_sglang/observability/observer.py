"""Observer: reads a scheduler's numbers now and then, for its log and for Prometheus."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from rheo_sglang.observability.exporter import MetricsExporter
from rheo_sglang.observability.log_line import log_line
from rheo_sglang.observability.snapshot import Snapshot, gather, number
from rheo_sglang.readings import Reading

logger = logging.getLogger(__name__)

LEAST_INTERVAL = 8
"""Decode steps between two readings at least, however often SGLang logs its own line."""
OBSERVER = "rheo_observer"
"""Where a scheduler keeps its observer, or None."""


def observer(scheduler: Any) -> Observer | None:
    """The observer of a scheduler, made when it is asked for first.

    None where it does not run rheo, on a rank that neither logs nor exports, and on a GPU without ``--enable-metrics``.
    """
    known = scheduler.__dict__.get(OBSERVER, scheduler)
    if known is scheduler:
        scheduler.__dict__[OBSERVER] = known = _make_observer(scheduler)
    return known


def _make_observer(scheduler: Any) -> Observer | None:
    from rheo_sglang.backend import RheoAttentionBackend

    backend = scheduler.tp_worker.model_runner.attn_backend
    if not isinstance(backend, RheoAttentionBackend):
        return None
    reporter = scheduler.metrics_reporter
    exports, logs = reporter.current_scheduler_metrics_enabled, reporter.is_stats_logging_rank
    if not (exports or logs) or (backend.engine.frames.is_cuda and not reporter.enable_metrics):
        return None
    exporter = MetricsExporter(reporter.metrics_collector) if exports else None
    allocator = scheduler.token_to_kv_pool_allocator
    interval = max(reporter.decode_log_interval, LEAST_INTERVAL)
    return Observer(backend.engine, allocator, interval, exporter, logs)


class Observer:
    """Shows every reading that has arrived; nothing here waits for the device.

    Parameters
    ----------
    engine
        Runs the decode steps.
    allocator
        Of the host pool.
    interval
        Decode steps between two readings, and between two lines of the log.
    exporter
        Sets metrics, or None.
    logs
        Whether to log lines.
    """

    def __init__(
        self, engine: Any, allocator: Any, interval: int, exporter: MetricsExporter | None, logs: bool
    ) -> None:
        self.engine = engine
        self.interval = interval
        self.allocator = allocator
        self.exporter = exporter
        self.logs = logs
        self.latest: Reading | None = None
        self.before: Reading | None = None
        self._logged: Snapshot = {}
        self._seen: tuple[Any, ...] = ()
        engine.readings.interval = interval

    def snapshot(self) -> Snapshot:
        """What can be said now, with averages over the latest interval. Waits for the device."""
        reading = self.engine.readings.now()
        return gather(self.engine, self.allocator, reading, self._start_of_interval(reading))

    def poll(self) -> None:
        """Show the latest reading, if it has arrived; after every batch."""
        reading = self.engine.readings.collect()
        if reading is not None:
            self._show(reading)

    def poll_idle(self, fully_idle: Callable[[], bool]) -> None:
        """Between batches: also take a reading if anything has changed since the last one and nothing runs."""
        self.poll()
        table = self.engine.table
        state = table.activity.steps, table.total_summarised_tokens, self.allocator.available_size()
        if state != self._seen and fully_idle() and self.engine.readings.take():
            self._seen = state
            self.poll()

    def _start_of_interval(self, reading: Reading) -> Reading | None:
        """The reading before the last decode steps; None if that is the start."""
        if self.latest is not None and self.latest.steps < reading.steps:
            return self.latest
        return self.before

    def _show(self, reading: Reading) -> None:
        before = self._start_of_interval(reading)
        self.before, self.latest = before, reading
        snapshot = gather(self.engine, self.allocator, reading, before)
        if self.exporter is not None:
            self.exporter.export(snapshot)
        if self.logs and reading.steps >= number(self._logged, "decode_steps_total") + self.interval:
            logger.info("%s", log_line(snapshot, self._logged))
            self._logged = snapshot
