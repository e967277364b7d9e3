"""METRICS: every number that a server tells about rheo, by the name that Prometheus and /server_info have for it."""

from __future__ import annotations

from typing import Literal, NamedTuple

PREFIX = "sglang:rheo_"
"""Before the names on ``/metrics``; a part of SGLang has its own name behind SGLang's."""


class Metric(NamedTuple):
    """One number, or one for each value of a label.

    Attributes
    ----------
    kind
        A ``counter`` since the start of the server never falls; its name ends in ``_total``.
    meaning
        Unit, and what it is over.
    label
        What tells several values apart; None for one.
    """

    kind: Literal["counter", "gauge"]
    meaning: str
    label: str | None = None


WINDOW = "over the latest interval between two readings in which decode steps ran"

METRICS: dict[str, Metric] = {
    "decode_steps_total": Metric("counter", "Decode steps"),
    "decoded_tokens_total": Metric("counter", "Tokens that decode steps made"),
    "summarised_tokens_total": Metric(
        "counter", "Tokens computed, of prompts and answers; cached ones are not"
    ),
    "samples_total": Metric("counter", "Selections recorded: layers x KV heads x decode steps x requests"),
    "context_pages_total": Metric("counter", "Pages of the context, over all samples"),
    "selected_pages_total": Metric("counter", "Pages selected, over all samples"),
    "hit_pages_total": Metric("counter", "Selected pages that had a frame, over all samples"),
    "missed_pages_total": Metric(
        "counter",
        "Selected pages without a frame, over all samples: over PCIe (fetch), attended by the CPU in DRAM (cpu), or "
        "both, where it is not counted which (shared)",
        "path",
    ),
    "missed_bytes_total": Metric(
        "counter",
        "Bytes of K and V of missed pages: over PCIe (fetch), read by the CPU from DRAM (cpu), or either (shared)",
        "path",
    ),
    "grown_samples_total": Metric(
        "counter", "Samples that scores or a floor allowed more pages than the budget"
    ),
    "grown_pages_total": Metric("counter", "Pages allowed beyond the budget, over all samples"),
    "hit_rate": Metric("gauge", f"Share of selected pages that had a frame, mean over samples, {WINDOW}"),
    "layer_hit_rate": Metric("gauge", f"The same of one layer, {WINDOW}", "layer"),
    "budget_pages": Metric("gauge", f"Pages selected by a KV head for a request in a step, mean {WINDOW}"),
    "budget_share": Metric("gauge", f"Pages selected / pages of the context, {WINDOW}"),
    "estimated_coverage": Metric(
        "gauge", f"Share of attention that selected pages have by estimate, mean over samples, {WINDOW}"
    ),
    "mass_covered": Metric("gauge", f"The same as measured (recorder 'mass'), {WINDOW}"),
    "frames_used": Metric("gauge", "Frames that hold a page, over all layers and KV heads"),
    "frames_free": Metric("gauge", "Frames that hold none, over all layers and KV heads"),
    "resident_pages": Metric("gauge", "Pages with a frame in at least one layer and KV head"),
    "host_pages_used": Metric("gauge", "Pages of the host pool that requests or the radix cache hold"),
    "host_pages_free": Metric("gauge", "Pages of the host pool that nothing holds"),
    "host_pool_bytes": Metric("gauge", "Bytes of the host pool, in DRAM"),
    "frame_pool_bytes": Metric("gauge", "Bytes of the frame pool, on the device"),
    "page_table_bytes": Metric("gauge", "Bytes of page table, summaries and importance, on the device"),
    "working_set_pages": Metric(
        "gauge",
        "Distinct pages that the running requests selected of late, in the fullest layer, mean over KV heads",
    ),
    "overcommit": Metric("gauge", "working_set_pages over the frames of a layer and KV head"),
    "cpu_attention_threads": Metric("gauge", "CPU threads that attend misses beside a GPU"),
    "cpu_attention_busy_seconds_total": Metric(
        "counter", "Seconds that these threads, all at once, attended misses"
    ),
    "admission_events_total": Metric(
        "counter",
        "Requests admitted, refused for now and paused, and decisions to shrink and grow budgets, to pause and resume",
        "event",
    ),
    "admission_frames_needed": Metric(
        "gauge", "Frames that the running requests need, of a layer and KV head, measured or predicted"
    ),
    "thrash": Metric(
        "gauge", "1 while budgets are shrunk or requests limited because frames thrashed, else 0"
    ),
    "budget_factor": Metric("gauge", "Factor by which thrash shrinks budgets"),
    "running_limit": Metric("gauge", "Requests that may run under thrash; 0: no limit"),
}
