"""Prefill attends densely over prefix and chunk, seeds importance, and gives the best full pages frames."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rheo_kernels.reference import block_keys
from rheo_sglang.decode.reference_residency import ReferenceResidency
from rheo_sglang.page_table import PageTable
from rheo_sglang.pools.blocks import frame_pool, host_pool
from rheo_sglang.prefill import Prefill, build_prefill_batch
from rheo_sglang.prefill.seed import SEED_QUERIES
from rheo_sglang.prefill.staging import GROWTH_STEPS, LEAST_TOKENS, staged_capacity
from unit.plain import relative_error

LAYERS, HEADS, GROUP, DIM, PAGE_SIZE, PAGES, FRAMES = 3, 2, 3, 16, 16, 40, 3
ALPHA = 0.5


@dataclass
class Request:
    """Random Q, K and V of one prompt in every layer, and the pages that hold it."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    pages: torch.Tensor
    done: int = 0

    @property
    def tokens(self) -> int:
        return self.q.shape[1]


class Server:
    """Pools, and requests that are prefilled into them chunk by chunk."""

    def __init__(self, prewarm: float = 0.0) -> None:
        self.table = PageTable(
            LAYERS,
            HEADS,
            DIM,
            PAGE_SIZE,
            PAGES,
            FRAMES,
            "mean",
            "importance",
            torch.float32,
            "cpu",
            ALPHA,
            prewarm=prewarm,
        )
        self.host = host_pool(LAYERS, PAGES, HEADS, DIM, PAGE_SIZE, torch.float32)
        self.frames = frame_pool(LAYERS, HEADS, FRAMES, DIM, PAGE_SIZE, torch.float32, "cpu")
        residency = ReferenceResidency(self.table, self.host, self.frames)
        self.prefill = Prefill(self.table, self.host, self.frames, PAGE_SIZE, residency)
        self.free = 1 + torch.randperm(PAGES - 1)

    def request(self, tokens: int) -> Request:
        count = -(-tokens // PAGE_SIZE)
        pages, self.free = self.free[:count], self.free[count:]
        assert pages.numel() == count
        q = torch.randn(LAYERS, tokens, HEADS * GROUP, DIM) * 2
        k, v = torch.randn(LAYERS, tokens, HEADS, DIM), torch.randn(LAYERS, tokens, HEADS, DIM)
        return Request(q, k, v, pages)

    def run(self, requests: list[Request], lengths: list[int], goes_on: bool = False) -> None:
        """Prefill the next tokens of each request and hold every output against attention in float64."""
        ends = [one.done + length for one, length in zip(requests, lengths, strict=True)]
        parts = [(one, slice(one.done, end)) for one, end in zip(requests, ends, strict=True)]
        width = max(-(-end // PAGE_SIZE) for end in ends)
        lists = torch.zeros((len(requests), width), dtype=torch.int32)
        slots = []
        for row, (one, part) in enumerate(parts):
            position = torch.arange(part.start, part.stop)
            slots.append(one.pages[position // PAGE_SIZE] * PAGE_SIZE + position % PAGE_SIZE)
            listed = one.pages[: -(-part.stop // PAGE_SIZE)]
            lists[row, : listed.numel()] = listed
        starts = [part.start for _, part in parts]
        batch = build_prefill_batch(lists, starts, lengths, PAGE_SIZE, goes_on)
        self.prefill.begin(batch, batch.num_pages, torch.arange(len(lengths), device=lists.device))
        for layer in range(LAYERS):
            q, k, v = (
                torch.cat([getattr(one, name)[layer, part] for one, part in parts])
                for name in ("q", "k", "v")
            )
            out = self.prefill(layer, q, k, v, torch.cat(slots), batch, DIM**-0.5)
            expected = [dense(one, layer, part) for one, part in parts]
            assert relative_error(out, torch.cat(expected)) < 1e-5
        for one, end in zip(requests, ends, strict=True):
            one.done = end


def weights(request: Request, layer: int, position: int) -> torch.Tensor:
    """One token's attention, ``[H, G, position + 1]``, float64."""
    q = request.q[layer, position].double().view(HEADS, GROUP, DIM)
    logits = torch.einsum("hgd,thd->hgt", q, request.k[layer, : position + 1].double()) * DIM**-0.5
    return logits.softmax(2)


def dense(request: Request, layer: int, part: slice) -> torch.Tensor:
    """Attention of a part's tokens, ``[T, Hq, D]``, float64."""
    rows = []
    for position in range(part.start, part.stop):
        values = request.v[layer, : position + 1].double()
        rows.append(torch.einsum("hgt,thd->hgd", weights(request, layer, position), values).flatten(0, 1))
    return torch.stack(rows)


def page_mass(request: Request, layer: int, head: int) -> list[float]:
    """Attention that each page draws from the last tokens."""
    mass = torch.zeros(request.pages.numel() * PAGE_SIZE, dtype=torch.float64)
    for position in range(max(0, request.tokens - SEED_QUERIES), request.tokens):
        mass[: position + 1] += weights(request, layer, position)[head].sum(0)
    return mass.view(-1, PAGE_SIZE).sum(1).tolist()


def prompt(tokens: int) -> tuple[Server, Request]:
    """A server that prefilled one prompt whole."""
    server = Server()
    request = server.request(tokens)
    server.run([request], [tokens])
    return server, request


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 100, 256])
def test_importance_is_seeded_by_the_last_tokens_attention(tokens: int) -> None:
    server, request = prompt(tokens)
    count = len(request.pages)
    for layer in range(LAYERS):
        for head in range(HEADS):
            mass = page_mass(request, layer, head)
            ranked = sorted(range(count), key=lambda page: mass[page])
            for place, page in enumerate(ranked, 1):
                importance = float(server.table.policy.worth[layer, head, request.pages[page]])
                assert importance == pytest.approx(ALPHA * place / count, abs=1e-6)
    others = [page for page in range(PAGES) if page not in request.pages.tolist()]
    assert not server.table.policy.worth[:, :, others].any()


def test_the_most_important_full_pages_get_the_frames() -> None:
    server, request = prompt(10 * PAGE_SIZE + 3)
    for layer in range(LAYERS):
        for head in range(HEADS):
            mass = page_mass(request, layer, head)[:10]
            best = sorted(range(10), key=lambda page: -mass[page])[:FRAMES]
            held = server.table.page_of[layer, head].tolist()
            assert set(held) == {int(request.pages[page]) for page in best}
            for frame, page in enumerate(held):
                assert torch.equal(server.frames[layer, head, frame], server.host[layer, page, head])
    server.table.check()


def follow_up(prewarm: float) -> tuple[Server, Request]:
    """A request whose first six pages an earlier request left in the cache, all of them important; four are new."""
    server = Server(prewarm)
    request = server.request(10 * PAGE_SIZE)
    server.run([request], [6 * PAGE_SIZE])
    server.table.policy.worth[:, :, request.pages[:6]] = 0.6
    server.run([request], [4 * PAGE_SIZE])
    return server, request


@pytest.mark.parametrize("prewarm", [0.0, 0.7])
def test_a_follow_up_merges_importance_of_its_prefix_and_of_its_last_tokens(prewarm: float) -> None:
    server, request = follow_up(prewarm)
    weight, first = (prewarm, 1.0) if prewarm else (ALPHA, ALPHA)
    for layer in range(LAYERS):
        for head in range(HEADS):
            mass = page_mass(request, layer, head)
            ranked = sorted(range(10), key=lambda page: mass[page])
            for place, page in enumerate(ranked, 1):
                old, share = (0.6, weight) if page < 6 else (0.0, first)
                importance = float(server.table.policy.worth[layer, head, request.pages[page]])
                assert importance == pytest.approx(old + share * (place / 10 - old), abs=1e-6)


def test_with_prewarming_the_pages_that_a_follow_up_attends_most_have_frames() -> None:
    """The prompt's last tokens are in the last page, and attend it; it is new."""
    server, request = follow_up(0.7)
    for layer in range(LAYERS):
        for head in range(HEADS):
            worth = server.table.policy.worth[layer, head, request.pages]
            best = set(request.pages[worth.topk(FRAMES).indices].tolist())
            assert set(server.table.page_of[layer, head].tolist()) == best


def test_every_full_page_gets_a_frame_while_there_are_free_ones() -> None:
    server, request = prompt((FRAMES - 1) * PAGE_SIZE + 5)
    full = request.pages[:-1]
    assert (server.table.frame_of[:, :, full] >= 0).all()
    assert (server.table.page_of >= 0).sum(2).eq(full.numel()).all()


def test_a_prompt_that_goes_on_leaves_importance_and_frames_alone() -> None:
    server = Server()
    done, more = server.request(2 * PAGE_SIZE), server.request(4 * PAGE_SIZE)
    server.run([done, more], [2 * PAGE_SIZE, 2 * PAGE_SIZE], goes_on=True)
    assert (server.table.frame_of[:, :, done.pages] >= 0).all()
    assert (server.table.frame_of[:, :, more.pages] < 0).all()
    assert not server.table.policy.worth[:, :, more.pages].any()
    server.run([more], [PAGE_SIZE], goes_on=True)
    assert not server.table.policy.worth[:, :, more.pages].any()
    server.run([more], [PAGE_SIZE])
    assert (server.table.policy.worth[:, :, more.pages] > 0).all()


def test_a_prompt_without_a_full_page_gets_no_frame() -> None:
    server, _ = prompt(PAGE_SIZE - 1)
    assert (server.table.page_of < 0).all()


def test_host_pages_hold_the_prompt() -> None:
    server, request = prompt(3 * PAGE_SIZE)
    for layer in range(LAYERS):
        keys = block_keys(server.host[layer, request.pages], PAGE_SIZE)
        assert torch.equal(keys.permute(0, 3, 1, 2).flatten(0, 1), request.k[layer])


@given(
    lengths=st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=3), min_size=1, max_size=3),
    seed=st.integers(0, 2**16),
)
def test_chunks_attend_everything_before_them(lengths: list[list[int]], seed: int) -> None:
    """Requests of several chunks each, prefilled together; frames serve part of every prefix."""
    torch.manual_seed(seed)
    server = Server()
    requests = [server.request(sum(chunks)) for chunks in lengths]
    for chunk in range(max(map(len, lengths))):
        taking = [row for row, chunks in enumerate(lengths) if chunk < len(chunks)]
        server.run([requests[row] for row in taking], [lengths[row][chunk] for row in taking])
        server.table.check()


def test_a_prefix_is_read_from_its_frames_where_it_has_some() -> None:
    server = Server()
    request = server.request(5 * PAGE_SIZE)
    server.run([request], [3 * PAGE_SIZE])
    assert (server.table.frame_of[:, :, request.pages[:3]] >= 0).all()
    server.host[:, request.pages[:3]] = torch.nan
    server.run([request], [2 * PAGE_SIZE])


def test_a_shared_prefix_is_staged_for_every_request() -> None:
    server = Server()
    first = server.request(4 * PAGE_SIZE)
    server.run([first], [first.tokens])
    second = server.request(PAGE_SIZE + 5)
    joined = Request(
        *(
            torch.cat([getattr(first, name)[:, : 3 * PAGE_SIZE], getattr(second, name)], 1)
            for name in ("q", "k", "v")
        ),
        torch.cat([first.pages[:3], second.pages]),
        done=3 * PAGE_SIZE,
    )
    third = server.request(7)
    server.run([joined, third], [PAGE_SIZE + 5, 7])


@given(tokens=st.integers(1, 1 << 22))
def test_a_half_is_at_most_a_quarter_larger_than_needed(tokens: int) -> None:
    capacity = staged_capacity(tokens)
    assert tokens <= capacity < max(tokens * (1 + 1 / GROWTH_STEPS), tokens + LEAST_TOKENS / GROWTH_STEPS)
    assert staged_capacity(capacity) == capacity
