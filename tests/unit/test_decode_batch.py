"""A decode batch names pages for SGLang's slots; a padded row changes nothing and leaves no trace."""

from __future__ import annotations

import pytest
import torch

from rheo_kernels.types import DecodeBatch
from rheo_sglang.config import RheoConfig
from rheo_sglang.decode.batch import build_decode_batch
from rheo_sglang.decode.engine import EngineInputs
from rheo_sglang.decode.heads import HeadShape
from rheo_sglang.decode.reference_engine import ReferenceDecodeEngine
from rheo_sglang.page_lists import page_lists
from rheo_sglang.page_table import PageTable
from rheo_sglang.pools.blocks import frame_pool, host_pool

HEADS, DIM, PAGES, FRAMES = 2, 16, 12, 4


def token_table(page_size: int, pages_of_rows: dict[int, list[int]]) -> torch.Tensor:
    """SGLang's token table of four rows: the slots of each row's pages, and zeros."""
    table = torch.zeros(4, 6 * page_size, dtype=torch.int32)
    for row, pages in pages_of_rows.items():
        for column, page in enumerate(pages):
            start = column * page_size
            table[row, start : start + page_size] = page * page_size + torch.arange(
                page_size, dtype=torch.int32
            )
    return table


def batch_of(page_size: int, pages_of_rows: dict[int, list[int]], lengths: dict[int, int]) -> DecodeBatch:
    config = RheoConfig(budget_ratio=0.5, budget_min_pages=1, dense_threshold=0)
    return build_decode_batch(
        token_table(page_size, pages_of_rows),
        torch.tensor(list(lengths)),
        torch.tensor(list(lengths.values())),
        max(lengths.values()),
        page_size,
        config.budget_table(page_size, 8, requests=4),
    )


@pytest.mark.parametrize("page_size", [16, 32, 64])
def test_pages_tails_and_filled_pages_follow_the_lengths(page_size: int) -> None:
    rows = {1: [7, 3, 9], 2: [5], 3: [3, 8, 2, 11]}
    batch = batch_of(page_size, rows, {3: 3 * page_size + 1, 1: 3 * page_size, 2: page_size - 1})
    assert batch.num_pages.tolist() == [4, 3, 1]
    for row, (slot, count) in enumerate(zip([3, 1, 2], batch.num_pages.tolist(), strict=True)):
        assert batch.pages[row, :count].tolist() == rows[slot]
    assert batch.tail_pages.tolist() == [11, 9, 5]
    assert batch.tail_offsets.tolist() == [0, page_size - 1, page_size - 2]
    assert batch.filled.tolist() == [0, 9, 0], "only the page whose last token this is has filled up"
    assert batch.budget.tolist() == [3, 3, 1]


def test_a_page_list_ends_with_the_page_of_the_longest_requests_last_token() -> None:
    table = token_table(16, {1: [4, 6]})
    assert page_lists(table, torch.tensor([1]), 16, 16).tolist() == [[4]]
    assert page_lists(table, torch.tensor([1]), 17, 16).tolist() == [[4, 6]]


def decode(requests: dict[int, int], padding: int) -> tuple[torch.Tensor, PageTable]:
    """One decode step over host pages full of noise; row 0 of the token table is SGLang's padding."""
    noise = torch.Generator().manual_seed(3)
    config = RheoConfig(budget_ratio=1.0)
    table = PageTable(1, HEADS, DIM, 16, PAGES, FRAMES, "bound", "lru", torch.float32, "cpu")
    host = host_pool(1, PAGES, HEADS, DIM, 16, torch.float32)
    host.copy_(torch.randn(host.shape, generator=noise))
    frames = frame_pool(1, HEADS, FRAMES, DIM, 16, torch.float32, "cpu")
    tokens = token_table(16, {1: [7, 3, 9], 2: [5]})
    heads = HeadShape(HEADS, 2, DIM)
    engine = ReferenceDecodeEngine(
        EngineInputs(config, table, host, frames, heads, 16, tokens, tokens.shape[1], None)
    )
    batch = len(requests) + padding
    q = torch.randn(4, 2 * HEADS, DIM, generator=noise)[:batch]
    k, v = (torch.randn(4, HEADS, DIM, generator=noise)[:batch] for _ in range(2))
    rows = torch.tensor([*requests, *[0] * padding])
    seq_lens = torch.tensor([*requests.values(), *[1] * padding])
    engine.settle()
    engine.begin_step(rows, seq_lens, seq_lens, len(requests), None)
    out = torch.full_like(q, torch.nan)
    engine.forward(0, q, k, v, 0.3, out)
    engine.end_step()
    return out, table


def test_a_padded_row_changes_nothing_and_leaves_no_trace() -> None:
    out, table = decode({1: 40, 2: 9}, 0)
    padded, padded_table = decode({1: 40, 2: 9}, 2)
    torch.testing.assert_close(padded[:2], out)
    assert torch.equal(padded[2:], torch.zeros_like(padded[2:]))
    padded_table.check()
    assert torch.equal(padded_table.frame_of, table.frame_of)
    assert torch.equal(padded_table.summaries, table.summaries)
    assert padded_table.counters() == table.counters()
