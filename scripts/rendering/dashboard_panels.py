"""Panels of the Grafana dashboard: what they ask Prometheus for, and what to think of it."""

from __future__ import annotations

from typing import NamedTuple

OF = '{model_name=~"$model_name", instance=~"$instance"}'
"""Which series a panel is of: the variables at the top of the dashboard."""


class Panel(NamedTuple):
    """One panel.

    Attributes
    ----------
    title, meaning
        What it shows, and what to think of it.
    unit
        Grafana's name of it.
    queries
        Expressions by the legend of their series.
    most
        Upper end of the axis, where it is known.
    stacked
        Whether series are shown on top of each other.
    """

    title: str
    meaning: str
    unit: str
    queries: dict[str, str]
    most: float | None = None
    stacked: bool = False


def metric(name: str) -> str:
    """Series of one of rheo's metrics."""
    return f"sglang:rheo_{name}{OF}"


def of_sglang(name: str) -> str:
    """Series of one of SGLang's metrics; those of the first rank."""
    return f"sglang:{name}{OF}"


def per_second(name: str) -> str:
    """Rise of one of rheo's counters."""
    return f"rate({metric(name)}[$__rate_interval])"


def quotient(part: str, whole: str) -> str:
    """Of the rise of two of rheo's counters, over all series."""
    return f"sum({per_second(part)}) / sum({per_second(whole)})"


STATS = [
    Panel(
        "Hit rate",
        "Selected pages that had a frame, by pages.",
        "percentunit",
        {"": quotient("hit_pages_total", "selected_pages_total")},
    ),
    Panel("Throughput", "Tokens decoded.", "short", {"": f"sum({per_second('decoded_tokens_total')})"}),
    Panel("Running requests", "SGLang's count.", "short", {"": f"sum({of_sglang('num_running_reqs')})"}),
    Panel(
        "Frames used",
        "At 100 % with a low hit rate: too few frames.",
        "percentunit",
        {"": f"sum({metric('frames_used')}) / sum({metric('frames_used')} + {metric('frames_free')})"},
    ),
    Panel(
        "Host pool used",
        "At 100 % prefixes are evicted.",
        "percentunit",
        {
            "": f"sum({metric('host_pages_used')}) / sum({metric('host_pages_used')} + {metric('host_pages_free')})"
        },
    ),
    Panel(
        "Thrash", "1 while budgets are shrunk or requests limited.", "short", {"": f"max({metric('thrash')})"}
    ),
]
ROWS = {
    "Hits and misses": [
        Panel(
            "Hit rate",
            "Of the selected pages, how many had a frame: by pages, and the mean over samples.",
            "percentunit",
            {
                "by pages": quotient("hit_pages_total", "selected_pages_total"),
                "by samples": f"avg({metric('hit_rate')})",
            },
            most=1,
        ),
        Panel(
            "Layers that hit least",
            "The five lowest; a few far below the others select other pages than these.",
            "percentunit",
            {"layer {{layer}}": f"bottomk(5, avg by (layer) ({metric('layer_hit_rate')}))"},
            most=1,
        ),
        Panel(
            "Missed pages",
            "By the way they are attended: read over PCIe, or by the CPU in DRAM.",
            "short",
            {"{{path}}": f"sum by (path) ({per_second('missed_pages_total')})"},
            stacked=True,
        ),
        Panel(
            "Bytes of misses",
            "K and V that crossed PCIe, or that the CPU read from DRAM.",
            "Bps",
            {"{{path}}": f"sum by (path) ({per_second('missed_bytes_total')})"},
            stacked=True,
        ),
        Panel(
            "CPU threads",
            "Share of time that the threads beside a GPU attended misses.",
            "percentunit",
            {"busy": f"avg({per_second('cpu_attention_busy_seconds_total')})"},
            most=1,
        ),
        Panel(
            "Frames of working sets",
            "Working sets over frames, in the fullest layer: above 1 pages are evicted before they are selected again.",
            "short",
            {"over-commit": f"max({metric('overcommit')})"},
        ),
    ],
    "Selection": [
        Panel(
            "Pages selected",
            "By a KV head for a request in a step: the budget as it was.",
            "short",
            {"pages": quotient("selected_pages_total", "samples_total")},
        ),
        Panel(
            "Share of the context and of its attention",
            "What was selected, and its share of the attention, estimated (errs to the high side) and measured.",
            "percentunit",
            {
                "selected": quotient("selected_pages_total", "context_pages_total"),
                "attention, estimated": f"avg({metric('estimated_coverage')})",
                "attention, measured": f"avg({metric('mass_covered')})",
            },
            most=1,
        ),
        Panel(
            "Budgets that grew",
            "Samples that a floor or scores allowed more than the budget, and pages beyond it over all samples.",
            "short",
            {
                "share of samples": quotient("grown_samples_total", "samples_total"),
                "pages beyond": quotient("grown_pages_total", "samples_total"),
            },
        ),
    ],
    "Pools": [
        Panel(
            "Frames",
            "Over all layers and KV heads.",
            "short",
            {"used": f"sum({metric('frames_used')})", "free": f"sum({metric('frames_free')})"},
            stacked=True,
        ),
        Panel(
            "Pages",
            "Of the host pool, and how many of them have a frame in any layer and KV head.",
            "short",
            {
                "used": f"sum({metric('host_pages_used')})",
                "free": f"sum({metric('host_pages_free')})",
                "with a frame": f"sum({metric('resident_pages')})",
            },
        ),
        Panel(
            "Memory",
            "Host pool in DRAM; frames, page table and summaries on the device.",
            "bytes",
            {
                "host pool": f"sum({metric('host_pool_bytes')})",
                "frames": f"sum({metric('frame_pool_bytes')})",
                "page table": f"sum({metric('page_table_bytes')})",
            },
        ),
    ],
    "Requests": [
        Panel(
            "Requests",
            "SGLang's counts.",
            "short",
            {
                "running": f"sum({of_sglang('num_running_reqs')})",
                "queued": f"sum({of_sglang('num_queue_reqs')})",
                "may run": f"min({metric('running_limit')})",
            },
        ),
        Panel(
            "Tokens",
            "Decoded, and computed of prompts; cached ones are in neither.",
            "short",
            {
                "decoded": f"sum({per_second('decoded_tokens_total')})",
                "prompts": f"sum({per_second('summarised_tokens_total')}) - sum({per_second('decoded_tokens_total')})",
            },
        ),
        Panel(
            "Admission",
            "What admission by working set decided, a second.",
            "short",
            {"{{event}}": f"sum by (event) ({per_second('admission_events_total')})"},
        ),
        Panel(
            "Frames needed",
            "By the running requests, of a layer and KV head, measured or predicted.",
            "short",
            {
                "needed": f"max({metric('admission_frames_needed')})",
                "working sets": f"max({metric('working_set_pages')})",
            },
        ),
        Panel(
            "Budget factor",
            "Below 1 thrash shrinks budgets.",
            "short",
            {"factor": f"min({metric('budget_factor')})"},
            most=1,
        ),
        Panel(
            "Steps", "Decode steps a second.", "short", {"steps": f"sum({per_second('decode_steps_total')})"}
        ),
    ],
}
