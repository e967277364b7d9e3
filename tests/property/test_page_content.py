"""However tokens arrive, in chunks split anywhere or one by one, a page's K, V and summaries are the same."""

from __future__ import annotations

from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from unit import plain

from rheo_kernels.reference import append, block_keys, block_values, load, save, write
from rheo_sglang.selection import SUMMARIES, PageSummary

HEADS, DIM, PAGES = 2, 8, 12
KINDS = ["bound", "mean"]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}


@dataclass
class Store:
    """Host pages and summaries of one layer, with every page resident in frames of its own."""

    page_size: int
    host: torch.Tensor
    frames: torch.Tensor
    page_table: torch.Tensor
    summary: PageSummary
    summaries: torch.Tensor

    @classmethod
    def empty(cls, kind: str, page_size: int, dtype: torch.dtype) -> Store:
        """A store whose every byte is left over from something else."""
        width = 2 * DIM * page_size
        host = torch.full((PAGES, HEADS, width), 7.0, dtype=dtype).unflatten(2, (2, -1))
        page_table = torch.stack([torch.randperm(PAGES), torch.randperm(PAGES)]).int()
        frames = torch.full((HEADS, PAGES, 2, width // 2), -7.0, dtype=dtype)
        summary = SUMMARIES[kind]()
        summaries = torch.full(
            (HEADS, PAGES, summary.rows, summary.row_width(DIM, page_size)), 3, dtype=summary.dtype(dtype)
        )
        return cls(page_size, host, frames, page_table, summary, summaries)

    def write_chunk(self, k: torch.Tensor, v: torch.Tensor, slots: torch.Tensor) -> None:
        write(k, v, slots, self.host, self.summary, self.summaries, self.page_size)

    def append_tokens(self, k: torch.Tensor, v: torch.Tensor, slots: torch.Tensor) -> None:
        """Decode steps of one request, saving every page that fills up."""
        for token, slot in enumerate(slots.tolist()):
            page, offset = (torch.tensor([part], dtype=torch.int32) for part in divmod(slot, self.page_size))
            row = slice(token, token + 1)
            append(
                k[row],
                v[row],
                page,
                offset,
                self.page_table,
                self.frames,
                self.summary,
                self.summaries,
                self.page_size,
            )
            if int(offset) == self.page_size - 1:
                save(self.frames, self.host, self.page_table, page)

    def to_frames(self, page: int) -> None:
        """Bring a page into its frames, as claiming a tail page does."""
        pages, count = torch.full((HEADS, 1), page), torch.ones(HEADS, dtype=torch.int32)
        load(self.host, self.frames, pages, self.page_table[:, page, None], count)


@dataclass
class Sequence:
    """Tokens of one request with the slots that they were given."""

    k: torch.Tensor
    v: torch.Tensor
    slots: torch.Tensor

    @classmethod
    def random(cls, tokens: int, page_size: int, dtype: torch.dtype, draw: torch.Generator) -> Sequence:
        k, v = (torch.randn(tokens, HEADS, DIM, generator=draw).to(dtype) for _ in range(2))
        pages = 1 + torch.randperm(PAGES - 1, generator=draw)
        position = torch.arange(tokens)
        return cls(k, v, pages[position // page_size] * page_size + position % page_size)

    def part(self, start: int, end: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.k[start:end], self.v[start:end], self.slots[start:end]


def assert_holds(store: Store, sequence: Sequence, tolerance: float) -> None:
    """Host pages hold exactly the sequence's K and V, and the summaries hold exactly its keys."""
    page_size = store.page_size
    for start in range(0, len(sequence.slots), page_size):
        keys = sequence.k[start : start + page_size].transpose(0, 1)
        values = sequence.v[start : start + page_size].transpose(0, 1)
        page, count = int(sequence.slots[start]) // page_size, keys.shape[1]
        assert torch.equal(block_keys(store.host[page], page_size)[:, :, :count].transpose(1, 2), keys)
        assert torch.equal(block_values(store.host[page], page_size)[:, :count], values)
        rows = store.summaries[:, page].double()
        if store.summary.name == "bound":
            assert torch.equal(rows[:, 0], keys.double().amin(1))
            assert torch.equal(rows[:, 1], keys.double().amax(1))
        else:
            torch.testing.assert_close(rows[:, 0], keys.double().mean(1), rtol=tolerance, atol=tolerance)


@st.composite
def sequences(draw: st.DrawFn) -> tuple[Store, Sequence, list[int], torch.dtype]:
    """A store, a sequence of up to six pages, and where to cut it."""
    page_size = draw(st.sampled_from([16, 32, 64]))
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16]))
    tokens = draw(st.integers(1, 6 * page_size))
    seeded = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    cuts = sorted(draw(st.sets(st.integers(1, tokens), max_size=5)) | {tokens})
    kind = draw(st.sampled_from(KINDS))
    store = Store.empty(kind, page_size, dtype)
    return store, Sequence.random(tokens, page_size, dtype, seeded), cuts, dtype


@given(sequences())
def test_chunks_split_anywhere_write_the_same_pages(
    case: tuple[Store, Sequence, list[int], torch.dtype],
) -> None:
    store, sequence, cuts, dtype = case
    for start, end in zip([0, *cuts], cuts, strict=False):
        store.write_chunk(*sequence.part(start, end))
    assert_holds(store, sequence, TOLERANCE[dtype])


@given(sequences(), st.data())
def test_a_prompt_continued_token_by_token_fills_the_same_pages(
    case: tuple[Store, Sequence, list[int], torch.dtype], data: st.DataObject
) -> None:
    store, sequence, cuts, dtype = case
    prompt = cuts[0]
    store.write_chunk(*sequence.part(0, prompt))
    if prompt % store.page_size:
        store.to_frames(int(sequence.slots[prompt - 1]) // store.page_size)
    end = min(len(sequence.slots), prompt + data.draw(st.integers(0, 2 * store.page_size), label="decoded"))
    store.append_tokens(*sequence.part(prompt, end))
    full = end // store.page_size * store.page_size if end > prompt else prompt
    whole = Sequence(*sequence.part(0, full))
    assert_holds(store, whole, TOLERANCE[dtype])
    if full < end:
        tail = torch.tensor([int(sequence.slots[end - 1]) // store.page_size])
        save(store.frames, store.host, store.page_table, tail)
        assert_holds(store, Sequence(*sequence.part(0, end)), TOLERANCE[dtype])


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_appends_to_every_requests_own_page(kind: str) -> None:
    store = Store.empty(kind, 16, torch.float32)
    draw = torch.Generator().manual_seed(1)
    k, v = (torch.randn(4, HEADS, DIM, generator=draw) for _ in range(2))
    tails = torch.tensor([5, 0, 3, 9], dtype=torch.int32)
    offsets = torch.tensor([0, 7, 15, 4], dtype=torch.int32)
    expected, summaries = store.frames.clone(), store.summaries.clone()
    append(k, v, tails, offsets, store.page_table, store.frames, store.summary, store.summaries, 16)
    for row in (0, 2, 3):
        for head in range(HEADS):
            frame = int(store.page_table[head, tails[row]])
            block_keys(expected, 16)[head, frame, :, offsets[row]] = k[row, head]
            block_values(expected, 16)[head, frame, offsets[row]] = v[row, head]
    assert torch.equal(store.frames, expected), "a padded row, or a token that is not new, was written"
    untouched = [page for page in range(PAGES) if page not in (5, 3, 9)]
    assert torch.equal(store.summaries[:, untouched], summaries[:, untouched])
    torch.testing.assert_close(store.summaries[:, 5], k[0][:, None].expand(-1, store.summary.rows, -1))


def test_pages_travel_between_host_and_frames_bit_by_bit() -> None:
    store = Store.empty("bound", 32, torch.bfloat16)
    store.host.copy_(torch.randn(store.host.shape))
    original = store.host.clone()
    pages = torch.tensor([[4, 2, 9], [4, 7, 5]])
    load(store.host, store.frames, pages, store.page_table.gather(1, pages), torch.tensor([2, 2]))
    for head, page in ((0, 4), (0, 2), (1, 4), (1, 7)):
        assert torch.equal(store.frames[head, store.page_table[head, page]], original[page, head])
    store.host[4] = 0
    save(store.frames, store.host, store.page_table, torch.tensor([4]))
    assert torch.equal(store.host, original)


def test_no_transfer_is_no_change() -> None:
    store = Store.empty("mean", 16, torch.float32)
    host, frames = store.host.clone(), store.frames.clone()
    none = torch.empty(0, dtype=torch.int64)
    load(store.host, store.frames, none.view(HEADS, 0), none.view(HEADS, 0), torch.zeros(HEADS))
    save(store.frames, store.host, store.page_table, none)
    assert torch.equal(store.host, host)
    assert torch.equal(store.frames, frames)


@pytest.mark.parametrize("page_size", [16, 32, 64])
def test_blocks_keep_keys_token_inner_and_values_row_major(page_size: int) -> None:
    keys, values = torch.randn(3, 2, page_size, DIM), torch.randn(3, 2, page_size, DIM)
    blocks = plain.pack(keys, values)
    assert torch.equal(block_keys(blocks, page_size), keys.transpose(2, 3))
    assert torch.equal(block_values(blocks, page_size), values)
    assert block_keys(blocks, page_size).data_ptr() == blocks.data_ptr()
