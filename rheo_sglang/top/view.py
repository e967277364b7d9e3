"""The view of `rheo top`: one scheduler's numbers as a panel for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rheo_sglang.recorder.report import one_line
from rheo_sglang.top.look import Look

BAR = 16
"""Width of a bar in columns."""
SHOWN_LAYERS, SHOWN_REQUESTS = 6, 6
LOW, FAIR = 0.75, 0.9
"""Hit rates below which they are shown in red and in yellow."""


def render(looks: Sequence[Look], url: str, note: str = "") -> RenderableType:
    """A panel for each scheduler.

    Parameters
    ----------
    looks
        One at each scheduler; with data parallelism there are several.
    url
        Address of the server, for the title.
    note
        What else to say below, for example why there is nothing newer.
    """
    parts: list[RenderableType] = []
    for number, look in enumerate(looks):
        name = url if len(looks) == 1 else f"{url}, replica {number}"
        seen = "since the start" if look.seconds is None else f"over the last {look.seconds:.1f} s"
        title, subtitle = Text(f"rheo top  {name}"), Text(f"hits, misses and rates {seen}")
        parts.append(
            Panel(_numbers(look), title=title, title_align="left", subtitle=subtitle, box=box.ROUNDED)
        )
    if note:
        parts.append(Text(note, style="yellow"))
    return Group(*parts)


def _numbers(look: Look) -> RenderableType:
    lines = Table.grid(padding=(0, 2))
    lines.add_column(style="bold", no_wrap=True)
    lines.add_column(width=BAR)
    lines.add_column(overflow="fold")
    for name, bar, text in (
        _throughput(look),
        _hit_rate(look),
        _use(look, "frames", "frames", "frames_used", "frames_free"),
        _use(look, "host pool", "pages", "host_pages_used", "host_pages_free"),
        _misses(look),
        _budget(look),
        _working_sets(look),
        *_offload(look),
        *_admission(look),
    ):
        lines.add_row(name, bar, text)
    tables = Table.grid(padding=(0, 3))
    tables.add_row(*(table for table in (_layers(look), _requests(look)) if table is not None))
    return Group(lines, tables) if tables.columns else lines


Line = tuple[str, RenderableType, str | Text]


def _throughput(look: Look) -> Line:
    parts = [f"{_number(look.throughput, ',.1f')} tokens/s decoded"]
    if look.seconds is not None:
        computed, decoded = look.rate("summarised_tokens_total"), look.rate("decoded_tokens_total")
        parts.append(f"{_number((computed or 0) - (decoded or 0), ',.1f')} prompt tokens/s computed")
        parts.append(f"{_number(look.rate('decode_steps_total'), ',.1f')} steps/s")
    else:
        parts.append(f"{_number(look.value('decode_steps_total'))} steps")
    return "throughput", "", ", ".join(parts)


def _hit_rate(look: Look) -> Line:
    rate = look.share("hit_pages_total", "selected_pages_total")
    if rate is None:
        why = "no step selected pages" if look.rheo.get("recorder") else "the recorder is off"
        return "hit rate", "", f"- ({why})"
    colour = _colour(rate)
    return "hit rate", _bar(rate, colour), Text(f"{rate:.3f} of the selected pages had a frame", style=colour)


def _use(look: Look, name: str, unit: str, used: str, free: str) -> Line:
    count, rest = look.value(used), look.value(free)
    if count is None or rest is None:
        return name, "", "-"
    total = count + rest
    return name, _bar(count / total if total else 0.0, "blue"), f"{count:,.0f} of {total:,.0f} {unit} used"


def _misses(look: Look) -> Line:
    names = {"fetch": "over PCIe", "cpu": "on the CPU"}
    parts = []
    for path, where in names.items():
        pages, size = look.since("missed_pages_total", path), look.since("missed_bytes_total", path)
        if pages is None or size is None:
            continue
        if look.seconds:
            parts.append(f"{where} {pages / look.seconds:,.0f} pages/s ({_size(size / look.seconds)}/s)")
        else:
            parts.append(f"{where} {pages:,.0f} pages ({_size(size)})")
    return "misses", "", ", ".join(parts) or "-"


def _budget(look: Look) -> Line:
    pages, share = (
        look.share("selected_pages_total", "samples_total"),
        look.share("selected_pages_total", "context_pages_total"),
    )
    if pages is None or share is None:
        return "budget", "", "-"
    text = f"{pages:,.1f} pages a KV head and request, {100 * share:.1f} % of the context"
    covered = look.value("estimated_coverage")
    if covered is not None:
        text += f", {100 * covered:.1f} % of the attention by estimate"
    return "budget", _bar(share, "cyan"), text


def _working_sets(look: Look) -> Line:
    pages, overcommit = look.value("working_set_pages"), look.value("overcommit")
    if pages is None or overcommit is None:
        return "working sets", "", "-"
    text = f"{pages:,.0f} pages in the fullest layer, {overcommit:.2f} times the frames"
    return "working sets", _bar(min(overcommit, 1.0), "red" if overcommit > 1 else "blue"), text


def _offload(look: Look) -> list[Line]:
    threads, busy = look.value("cpu_attention_threads"), look.rate("cpu_attention_busy_seconds_total")
    if threads is None:
        return []
    use = "" if busy is None else f", busy {100 * busy:.1f} % of the time"
    return [("CPU threads", "" if busy is None else _bar(min(busy, 1.0), "blue"), f"{threads:.0f}{use}")]


def _admission(look: Look) -> list[Line]:
    if not isinstance(look.metrics.get("admission_events_total"), dict):
        return []
    events = {name: look.value("admission_events_total", name) for name in ("admitted", "refused", "paused")}
    counts = ", ".join(f"{name} {_number(count, ',.0f')}" for name, count in events.items())
    text = Text(f"{counts} since the start")
    if look.value("thrash"):
        limit = look.value("running_limit") or 0
        most = f", {limit:,.0f} requests at most" if limit else ""
        text.append(f"; frames thrash: budgets x {look.value('budget_factor') or 1:.2f}{most}", style="red")
    return [("admission", "", text)]


def _layers(look: Look) -> Table | None:
    layers = look.layers()[:SHOWN_LAYERS]
    if not layers:
        return None
    table = Table(title="Lowest hit rates", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("layer", justify="right")
    table.add_column("hit rate", justify="right")
    for layer, rate in layers:
        table.add_row(layer, Text(f"{rate:.3f}", style=_colour(rate)))
    return table


def _requests(look: Look) -> Table | None:
    requests = look.requests()
    if not requests:
        return None
    more = len(requests) - SHOWN_REQUESTS
    caption = f"and {more:,} more" if more > 0 else None
    table = Table(title="Requests", caption=caption, box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("request", max_width=24, overflow="ellipsis", no_wrap=True)
    for name in ("steps", "hit rate", "selected", "covered"):
        table.add_column(name, justify="right", no_wrap=True)
    for entry in requests[:SHOWN_REQUESTS]:
        table.add_row(
            one_line(entry["rid"]),
            _number(entry["iterations"]),
            _number(entry["hit_rate"], ".3f"),
            _number(entry.get("selected_share"), ".3f"),
            _number(entry.get("estimated_coverage"), ".3f"),
        )
    return table


def _bar(share: float, style: str) -> ProgressBar:
    return ProgressBar(total=1.0, completed=share, width=BAR, complete_style=style, finished_style=style)


def _colour(rate: float) -> str:
    return "red" if rate < LOW else "yellow" if rate < FAIR else "green"


def _number(value: float | None, form: str = ",") -> str:
    return "-" if value is None else format(value, form)


def _size(size: float) -> str:
    """Bytes, with a unit that leaves at most four digits before the point."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = 0
    while size >= 1024 and power < len(units) - 1:
        size, power = size / 1024, power + 1
    return f"{size:,.0f} {units[power]}" if power == 0 else f"{size:,.1f} {units[power]}"
