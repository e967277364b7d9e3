"""The report of a running server, as tables for a terminal."""

from __future__ import annotations

import os
import sys
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

PIPED_COLUMNS = 160
"""Width of a report that goes into a file or another program, which have none of their own."""
COUNTERS = {
    "pages_total": ("pages in the host pool", "pages"),
    "pages_allocated": ("pages allocated", "pages"),
    "pages_resident": ("pages with a frame", "pages, in any layer and KV head"),
    "pages_unsaved": ("pages with tokens only in frames", "pages, in any layer"),
    "pages_summarised": ("pages with a summary", "pages"),
    "pages_important": ("pages worth more than 0", "pages, in any layer and KV head"),
    "frames_total": ("frames", "frames x layers x KV heads"),
    "frames_used": ("frames used", "frames x layers x KV heads"),
    "total_summarised_tokens": ("tokens summarised", "tokens, since the start"),
}
"""What a counter is called, and what it counts."""


def render_report(state: dict[str, Any]) -> RenderableType:
    """Tables for a terminal.

    Parameters
    ----------
    state
        The ``rheo`` object of a server's internal state: ``recorder``, ``counters``, ``working_sets``, ``admission``,
        ``storage``, ``misses`` and ``prefixes``. Names that clients chose are shown as they are, never as markup.
    """
    parts: list[RenderableType] = []
    recorder = state.get("recorder")
    if recorder is None:
        parts.append("The recorder is off (recorder='off' in --rheo-config).")
    elif not recorder["requests"]:
        parts.append("No decode step that selects pages has been recorded yet.")
    else:
        parts += [_requests_table(recorder), _averages_table(recorder["overall"])]
    parts.append(_counters_table(state.get("counters", {})))
    if state.get("working_sets", {}).get("requests"):
        parts.append(_working_sets_table(state["working_sets"]))
    if state.get("admission"):
        parts.append(_admission_table(state["admission"]))
    if state.get("storage"):
        parts.append(_storage_table(state["storage"]))
    if state.get("misses"):
        parts.append(_misses_table(state["misses"]))
    if state.get("prefixes"):
        parts.append(_prefixes_table(state["prefixes"]))
    if state.get("not_finite"):
        parts.append(f"{state['not_finite']:,} numbers were not finite and are left out.")
    return Group(*parts)


def print_report(state: dict[str, Any]) -> None:
    """Print `render_report` to the standard output."""
    print_whole(render_report(state))


def print_whole(shown: RenderableType) -> None:
    """Print to the standard output and flush it; a reader that has gone is a BrokenPipeError, not rich's exit."""
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=PIPED_COLUMNS)
    with console.capture() as capture:
        console.print(shown)
    sys.stdout.writelines(capture.get().splitlines(keepends=True))
    sys.stdout.flush()


def one_line(text: str) -> Text:
    """A client's text as one line: no markup, no emoji codes, no control characters."""
    return Text("".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text))


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def _number(value: Any, form: str = ",") -> str:
    return "-" if value is None else format(value, form)


def _table(title: str, columns: dict[str, str], caption: str | None = None) -> Table:
    """A table of ``columns``, name to alignment; only what is aligned left may be folded."""
    table = Table(title=title, caption=caption, caption_justify="left")
    for name, justify in columns.items():
        left = justify == "left"
        table.add_column(name, justify="left" if left else "right", overflow="fold", no_wrap=not left)
    return table


def _requests_table(recorder: dict[str, Any]) -> Table:
    overall = recorder["overall"]
    measured, estimated = "mass_covered" in overall, "estimated_coverage" in overall
    shares = {"mass": "mass_covered"} if measured else {"covered": "estimated_coverage"} if estimated else {}
    grew = "grown_share" in overall
    names = ["steps", "samples", "hit rate", "pages hit", "selected", *shares, *(["grew", "by pages"] * grew)]
    caption = (
        "samples: layers x KV heads x decode steps. hit rate: selected pages that had a frame, per sample. "
        "selected: pages of the context that were selected, which is what the budget allowed"
    )
    if measured:
        caption += ". mass: attention of the whole context that fell on them"
        if uncounted := overall.get("mass_not_finite"):
            caption += f" (not a finite number in {uncounted:,} samples, which are left out)"
        if estimated:
            caption += f", {_percent(overall['estimated_coverage'])} of all as estimated by page summaries"
    elif estimated:
        caption += (
            ". covered: attention of the whole context that fell on them, as estimated by page summaries"
        )
    if grew:
        caption += ". grew: samples that were allowed more than the budget. by pages: how many more, over all samples"
    kept = recorder.get("kept_requests")
    if kept is not None:
        caption += f". all: the running requests and the last {kept:,} that ended"
    columns = {"request": "left", **dict.fromkeys(names, "right")}
    table = _table("Hit rate per request", columns, caption + ".")
    rows = [(entry["rid"], _number(entry["iterations"]), entry) for entry in recorder["requests"]]
    for name, steps, entry in [*rows, ("all", "", overall)]:
        row = [
            steps,
            _number(entry["samples"]),
            _percent(entry["hit_rate"]),
            _percent(entry["page_hit_rate"]),
            _percent(entry.get("selected_share")),
        ]
        row += [_percent(entry.get(key)) for key in shares.values()]
        if grew:
            row += [_percent(entry.get("grown_share")), _number(entry.get("grown_pages"), ",.1f")]
        table.add_row(one_line(name), *row)
    return table


def _averages_table(overall: dict[str, Any]) -> Table:
    table = Table(title="Average hit rate per layer and per KV head")
    table.add_column("layer", justify="right")
    table.add_column("hit rate", justify="right")
    table.add_column("KV head", justify="right")
    table.add_column("hit rate", justify="right")
    layers, heads = overall["per_layer"], overall["per_head"]
    for row in range(max(len(layers), len(heads))):
        layer = (str(row), _percent(layers[row])) if row < len(layers) else ("", "")
        head = (str(row), _percent(heads[row])) if row < len(heads) else ("", "")
        table.add_row(*layer, *head)
    return table


def _prefixes_table(prefixes: list[dict[str, Any]]) -> Table:
    names = ("tokens", "shared", "nodes", "importance", "resident", "in use")
    table = _table(
        "Longest cached prefixes",
        {"node": "right", **dict.fromkeys(names, "right")},
        "node: the last node of the prefix in the radix tree. shared: leading tokens that another cached prefix "
        "begins with too.",
    )
    for prefix in prefixes:
        table.add_row(
            str(prefix.get("node", "-")),
            _number(prefix["tokens"]),
            _number(prefix.get("shared_tokens")),
            _number(prefix.get("nodes")),
            _number(prefix["importance"], ".3g"),
            _percent(prefix["resident"]),
            "yes" if prefix["locked"] else "no",
        )
    return table


def _counters_table(counters: dict[str, Any]) -> Table:
    table = _table("Pages and frames", {"what": "left", "count": "right", "of what": "left"})
    for name, value in counters.items():
        label, unit = COUNTERS.get(name, (name.replace("_", " "), ""))
        table.add_row(one_line(label), _number(value), unit)
    return table


def _working_sets_table(sets: dict[str, Any]) -> Table:
    frames = sets["frames"]
    table = _table(
        f"Working sets of the last {_number(sets['steps'])} steps",
        {"of": "left", "pages": "right", "of frames": "right", "fewest": "right", "most": "right"},
        f"Distinct pages that were selected, per layer and KV head, of {_number(frames)} frames, before step "
        f"{_number(sets['counted_at'])}. pages: the mean; fewest, most: of any KV head. A request's pages count for it "
        "alone, those of a layer once for all requests.",
    )
    rows = [(request["rid"], request["pages"], request["per_head"]) for request in sets["requests"]]
    rows += [
        (f"layer {layer}", pages, heads)
        for layer, (pages, heads) in enumerate(zip(sets["layers"], sets["per_layer_head"], strict=True))
    ]
    for name, pages, heads in rows:
        share = _percent(pages / frames)
        table.add_row(
            one_line(name), _number(pages, ",.1f"), share, *(_number(end) for end in (min(heads), max(heads)))
        )
    return table


def _admission_table(admission: dict[str, Any]) -> Table:
    table = _table(
        "Admission by working set",
        {"what": "left", "value": "right"},
        "frames needed: by the running requests, per layer and KV head, as measured, or predicted for the first steps "
        "of a request. The last lines count since the start.",
    )
    shown = {
        "frames needed": _number(admission["frames_needed"]),
        "frames": _number(admission["frames"]),
        "overcommit": _number(admission["overcommit"], "g"),
        "growth": _number(admission["growth"], "g"),
        "hit rate of late": _percent(admission["hit_rate"]),
        "budget factor": _number(admission["budget_factor"], "g"),
        "most running": _number(admission["most_running"]),
    }
    for name, value in shown.items():
        table.add_row(name, value)
    for name, value in admission["counters"].items():
        table.add_row(one_line(name), _number(value))
    return table


def _storage_table(storage: dict[str, Any]) -> Table:
    off = f" Off: {storage['off']}." if storage["off"] else ""
    table = _table(
        "Prefixes in storage",
        {"what": "left", "count": "right"},
        f"Backend {storage['backend']}, a record of {_number(storage['page_bytes'])} bytes a page. Requests wait for "
        f"their prefixes by the policy {storage['policy']}. All but the first two count since the start.{off}",
    )
    for name, value in storage.items():
        if name not in ("backend", "policy", "page_bytes", "off"):
            table.add_row(one_line(name.replace("_", " ")), _number(value))
    return table


def _misses_table(misses: dict[str, Any]) -> Table:
    table = _table(
        "Misses of a layer",
        {"what": "left", "value": "right"},
        "Means over the layers of all decode steps since the start that had misses; us: microseconds.",
    )
    for name, value in misses.items():
        table.add_row(one_line(name.replace("_", " ")), _number(value))
    return table
