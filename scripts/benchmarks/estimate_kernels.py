"""Time the kernels of sub-centroid summaries, at the Qwen3-8B shape if not told, against the bytes they must move.

    PYTHONPATH=scripts python -m benchmarks.estimate_kernels --batch 1 8 --context 131072 --out result.json

Each kernel runs inside a CUDA graph over as many layers' summaries as it takes to exceed the L2 cache. *Floor* is
the time in which a device copy moves as many bytes. *Path* is a layer's estimate, shares, selection and look-up, one
after the other, and what attending the pages left out adds to the attention of the selected ones; its floor is that of
the summaries, each byte once.

``--documents N`` has the requests of a batch share that many contexts, as those of several questions about one document
do; without it each has its own. `pair_prefixes` runs once a step, the other kernels in every layer.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch

from benchmarks.kernels import time_us
from common.measurement import gpu_in_words, keep_result, result_document
from rheo_kernels.cuda.attend import Workspace, attend_selected
from rheo_kernels.cuda.estimate import MOST_PAIRED_GROUP, estimate, log_shares
from rheo_kernels.cuda.select_resolve import select_resolve
from rheo_kernels.triton import allow, count_working_sets, pair_prefixes, tail, tail_splits
from rheo_kernels.triton.working_sets import total_programs
from rheo_kernels.types import Estimates, Partials, PrefixPairs, Selected, Tail
from rheo_kernels.types.subcentroids import SubcentroidLayout, subcentroid_layout

DIM = 128
L2_BYTES = 128 * 2**20
"""What layers' summaries must exceed."""
MODEL_LAYERS = 36
FLOOR = 0.9
COPY_BYTES = 2**30
LAYOUTS = {
    f"page{size}_rows{rows}": (size, rows) for size, rows in ((32, 4), (32, 8), (16, 2), (16, 4), (32, 2))
}


def copy_rate() -> float:
    """Bytes a microsecond that a device copy reads and writes."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / time_us([lambda: target.copy_(source)])


def measure(
    layout: SubcentroidLayout,
    heads: int,
    group: int,
    batch: int,
    documents: int,
    context: int,
    budget_ratio: float,
    rate: float,
) -> dict[str, float]:
    """Microseconds of a layer's kernels, and their floors."""
    device, size = "cuda", layout.page_size
    width = context // size
    total, queries = documents * width + 1, heads * group
    layers = max(8, -(-L2_BYTES // (heads * total * layout.width)))
    # random bytes hold scales that are infinite; a fixed one in every place keeps the arithmetic finite
    summaries = torch.randint(0, 256, (layers, heads, total, layout.width), dtype=torch.uint8, device=device)
    summaries[..., layout.scales_offset : layout.value_offset] = 64
    q = torch.randn((batch, queries, DIM), dtype=torch.bfloat16, device=device)
    shared = (torch.randperm(total - 1, device=device) + 1).to(torch.int32).view(documents, width)
    pages = shared[torch.arange(batch, device=device) % documents]
    seq_lens = torch.full((batch,), context, dtype=torch.int32, device=device)
    selected = int(budget_ratio * width)
    order = torch.rand((batch, heads, width), device=device).argsort(-1)
    found = Estimates.allocate(batch, queries, width, device)
    scores = torch.empty((batch, heads, width), device=device)
    splits = tail_splits(batch * heads, width)
    partials = Partials.allocate(batch * heads, group, DIM, splits, device)
    scale = DIM**-0.5

    pairs = PrefixPairs.allocate(batch, device) if batch > 1 and group <= MOST_PAIRED_GROUP else None
    scratch = torch.empty(batch * (batch + 1), dtype=torch.int32, device=device)

    def estimates_of(pairs: PrefixPairs | None) -> list[partial[Estimates]]:
        given = pages, seq_lens, scale, layout, found, pairs
        return [partial(estimate, q, layer, *given) for layer in summaries]

    result = dict[str, float]()
    if pairs is not None:
        result["pair_prefixes"] = time_us([lambda: pair_prefixes(pages, seq_lens, size, scratch, pairs)])
        result["estimate_without_pairs"] = time_us(estimates_of(None))
    tails = [partial(tail, found.lse, layer, pages, layout, partials) for layer in summaries]
    listed = documents * heads * width
    written = 4 * batch * queries * width
    result["estimate"] = time_us(estimates_of(pairs))
    result["log_shares"] = time_us([lambda: log_shares(found, seq_lens, size, scores)])
    result["estimate_floor"] = (listed * layout.value_offset + written) / rate
    caps, most = (
        torch.full((batch,), pages_of, dtype=torch.int32, device=device) for pages_of in (64, width)
    )
    floor = torch.full((batch,), FLOOR, device=device)
    listed_pages = torch.full((batch,), width, dtype=torch.int32, device=device)
    allowed = torch.empty((batch, heads), dtype=torch.int32, device=device)
    result["allow"] = time_us(
        [lambda: allow(None, scores, listed_pages, caps, most, floor, 1, 2, None, allowed)]
    )
    stamps = torch.randint(0, 64, (MODEL_LAYERS * heads, total), dtype=torch.int32, device=device)
    active = torch.full((total,), 64, dtype=torch.int32, device=device)
    sets = torch.empty((stamps.shape[0], batch + total_programs(total)), dtype=torch.int32, device=device)
    result["working_sets"] = time_us(
        [lambda: count_working_sets(pages, listed_pages, active, stamps, 64, 32, sets)]
    )
    found.lse.scatter_(2, order[..., :selected].repeat_interleave(group, 1), -torch.inf)
    result["tail"] = time_us(tails)
    result["tail_floor"] = (listed * (layout.width - layout.scales_offset) + written) / rate
    result["path_floor"] = (listed * layout.width + written) / rate

    frame_total = min(batch * selected, documents * width) + 1
    frames = torch.randn((layers, heads, frame_total, 2, DIM * size), device=device).to(torch.bfloat16)
    table = torch.randint(0, frame_total, (heads, total), dtype=torch.int32, device=device)
    budget = torch.full((batch, heads), selected, dtype=torch.int32, device=device)
    chosen = Selected.allocate(batch, heads, selected, device)
    out = torch.empty_like(q)

    def select(layer: torch.Tensor) -> None:
        estimate(q, layer, pages, seq_lens, scale, layout, found, pairs)
        log_shares(found, seq_lens, size, scores)
        select_resolve(
            scores, pages, listed_pages, seq_lens, budget, table, size, 1, 2, chosen, lse=found.lse
        )

    def attend(layer: int, workspace: Workspace, tail: Tail | None) -> None:
        attend_selected(q, frames[layer], None, chosen, scale, size, workspace, out, tail=tail)

    result["select_path"] = time_us([partial(select, layer) for layer in summaries])
    for name, tail_width in (("attend", 0), ("attend_with_tail", width)):
        workspace = Workspace.allocate(batch * heads, group, DIM, size, selected, q.device, tail_width)
        left_out = [
            Tail(found.lse, layer, pages, layout, listed_pages) if tail_width else None for layer in summaries
        ]
        result[name] = time_us(
            [partial(attend, layer, workspace, left_out[layer]) for layer in range(layers)]
        )
    result["path"] = result["select_path"] + result["attend_with_tail"] - result["attend"]
    return result


def main() -> None:
    """Measure and keep a result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument(
        "--documents",
        type=int,
        nargs="+",
        help="contexts that a batch shares, one measurement each; 0, as if omitted: each request has its own",
    )
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--group", type=int, default=4, help="query heads per KV head")
    parser.add_argument("--context", type=int, default=131072)
    parser.add_argument("--budget", type=float, default=0.02, help="share of the pages that is selected")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS), help="pages and rows")
    arguments = parser.parse_args()
    rate, metrics = copy_rate(), dict[str, float]()
    for page_size, row_tokens in (LAYOUTS[name] for name in arguments.layouts):
        layout = subcentroid_layout(DIM, page_size, row_tokens)
        for batch in arguments.batch:
            for documents in dict.fromkeys(
                min(number or batch, batch) for number in arguments.documents or [0]
            ):
                load = batch, documents, arguments.context, arguments.budget
                times = measure(layout, arguments.kv_heads, arguments.group, *load, rate)
                shape = f"page{page_size}_rows{row_tokens}_bs{batch}_{arguments.context // 1024}k"
                shape += f"_of{documents}" if documents < batch else ""
                metrics |= {f"{name}_us_{shape}": round(value, 3) for name, value in times.items()}
                print(shape, *(f"{name} {value:.4g}" for name, value in times.items()))
                metrics["copy_bytes_per"] = rate
                keep_result(arguments.out, result_document(arguments.out.stem, metrics, gpu_in_words()))


if __name__ == "__main__":
    main()
