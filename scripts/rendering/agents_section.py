"""Section of docs/results.md on agent sessions whose KV is several times the memory for it."""

from __future__ import annotations

from typing import Any

ENGINES = {
    "fa3": "fa3",
    "hicache": "fa3 with HiCache",
    "torch_native": "torch_native",
    "rheo": "rheo",
}


def agents(result: dict[str, Any], table: Any, provenance: Any) -> str:
    """Section on agent sessions, of a GPU or of a CPU."""
    metrics = result["metrics"]
    gpu = "no GPU" not in result["machine"]
    names = [name for name in ENGINES if name in metrics]
    rows = [
        [
            ENGINES[name],
            label,
            f"{part['hit_rate']:.1%}",
            *_times(part["ttft_ms"], 1e3, 2),
            *_times(part["tpot_ms"], 1.0, 1),
        ]
        for name in names
        for label, part in (("first", metrics[name]["first"]), ("later", metrics[name]["later"]))
    ]
    header = ["engine", "turns", "prefix hits", "TTFT s, P50", "P95", "P99", "TPOT ms, P50", "P95", "P99"]
    rates = [
        [
            ENGINES[name],
            f"{metrics[name]['output_tokens_per_s']:.2f}",
            f"{metrics[name]['turns_per_s']:.3f}",
            f"{metrics[name]['seconds']:.0f}",
            f"{metrics[name]['load_average']:.1f}",
        ]
        for name in names
    ]
    by_turn = [
        [
            int(turn),
            metrics[names[0]]["by_turn"][turn]["prompt_tokens"],
            *(f"{metrics[name]['by_turn'][turn]['ttft_ms']['p50'] / 1e3:.2f}" for name in names),
        ]
        for turn in metrics[names[0]]["by_turn"]
    ]
    recorder = metrics["rheo"]["told"]["recorder"]
    figures = ", ".join(
        f"`{name}` {value:.2f}" for name, value in metrics.items() if "_vs_" in name and value is not None
    )
    parts = [
        "## Agent sessions" + ("" if gpu else ", without a GPU"),
        f"{metrics['model']}: {metrics['sessions']} sessions of {metrics['turns']} turns that take turns, "
        f"{metrics['at_once']} requests at once. The first prompt has {metrics['first_prompt_tokens']} tokens, each "
        f"later one {metrics['tool_tokens']} more of a tool's output, which is real files, and the answer before it, "
        f"{metrics['answer_tokens']} tokens. All sessions together have {metrics['kv_times']:g} times the tokens that "
        f"the memory for KV holds, {metrics['kv_tokens']} tokens in every engine. Prefix hits are the share of "
        "prompts' tokens that came from the cache; times are those of clients that stream. P99 of few sessions is "
        "their slowest turn. The load is how many threads wanted a core on average: above the number of cores, other "
        "work took a share of them.",
        table(header, rows),
        table(["engine", "answered tokens/s", "turns/s", "seconds in all", "load of the machine"], rates),
        "Median time to the first token of each turn, in seconds:",
        table(["turn", "tokens of a prompt", *(ENGINES[name] for name in names)], by_turn),
        f"{figures}. rheo selected {recorder['selected_share']:.1%} of the pages, {recorder['hit_rate']:.1%} of them "
        "with a frame.",
    ]
    held = metrics["kv_tokens"] // metrics["tokens_of_a_session"]
    if held < metrics["at_once"]:
        parts.append(
            f"A dense pool has room for {held} whole session{'s' if held > 1 else ''} at a time, so that steps there "
            f"decode fewer requests at once than rheo's, which is part of the difference in TPOT."
        )
    if gpu and "fa3" not in metrics:
        parts.append("The run ended before fa3's turn; HiCache decodes with fa3's kernels.")
    loader = _loader(metrics, names, table)
    if loader:
        parts += [loader]
    return "\n\n".join([*parts, provenance(result)])


def _times(quantiles: dict[str, float], divisor: float, digits: int) -> list[str]:
    return [f"{quantiles[name] / divisor:.{digits}f}" for name in ("p50", "p95", "p99")]


def _loader(metrics: dict[str, Any], names: list[str], table: Any) -> str:
    rows = [
        [
            ENGINES[name],
            f"{run['output_throughput']:.2f}",
            f"{run['median_ttft_ms'] / 1e3:.2f}",
            f"{run['p99_ttft_ms'] / 1e3:.2f}",
            f"{run['median_tpot_ms']:.1f}",
            f"{run['p99_tpot_ms']:.1f}",
        ]
        for name in names
        if (run := metrics[name].get("loader"))
    ]
    if not rows:
        return ""
    header = ["engine", "answered tokens/s", "TTFT s, P50", "P99", "TPOT ms, P50", "P99"]
    return "\n\n".join(
        [
            "The same sessions, replayed by the agentic loader of SGLang's `bench_serving` through the chat interface, "
            "each client one session after another:",
            table(header, rows),
        ]
    )
