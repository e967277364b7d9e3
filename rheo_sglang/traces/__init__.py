"""Traces: what every decode step selected and how it scored its pages, written to Parquet while a server runs."""

from rheo_sglang.traces.open_trace import TracedShape, open_trace
from rheo_sglang.traces.reader import Trace, TraceError
from rheo_sglang.traces.tracer import Tracer

__all__ = ["Trace", "TraceError", "TracedShape", "Tracer", "open_trace"]
