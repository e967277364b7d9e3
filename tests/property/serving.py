"""A scheduler in miniature: real tree, allocator, pools and attention backend, without a model or a server.

Every output is held against float64 attention over the tokens that were selected for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, InsertParams
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode
from unit import plain, sglang_versions

from property.tokens import Shape, Tokens
from rheo_kernels.reference import block_keys
from rheo_sglang.backend import RheoAttentionBackend
from rheo_sglang.config import RheoConfig
from rheo_sglang.decode.reference_engine import ReferenceDecodeEngine
from rheo_sglang.pools.allocator import RheoAllocator
from rheo_sglang.pools.kv_pool import RheoKVPool
from rheo_sglang.selection.selector import Selection, Selector
from rheo_sglang.tree.nodes import slot_pages

DECODE_BATCH = 3


@dataclass
class Request:
    """A running request; its first ``protected`` tokens are the tree's, locked by ``node`` and ``receipt``."""

    rid: str
    tokens: list[int]
    slot: int
    protected: int
    node: Any
    receipt: Any
    computed: int = 0


class ObservedSelector:
    """A selector that remembers what it selected."""

    def __init__(self, selector: Selector) -> None:
        self.selector = selector
        self.latest: Selection | None = None

    def __call__(self, *args: Any) -> Selection:
        self.latest = self.selector(*args)
        return self.latest


@dataclass
class Server:
    """What SGLang's scheduler does to tree, allocator and backend, in the same order."""

    shape: Shape
    config: RheoConfig
    running: list[Request] = field(default_factory=list)
    masses: dict[str, list[float]] = field(default_factory=dict)
    forwarded: int = 0
    started: int = 0

    def __post_init__(self) -> None:
        """Build the pools, the tree, the backend and the layers that call it."""
        shape = self.shape
        self.context = shape.pages * shape.page_size
        self.pool = RheoKVPool(
            self.context,
            shape.page_size,
            shape.dtype,
            shape.kv_heads,
            shape.head_dim,
            shape.layers,
            "cpu",
            shape.frames,
            self.config,
            start_layer=0,
        )
        self.table = self.pool.table
        self.content = Tokens(shape, self.context)
        heads = shape.kv_heads * shape.group
        self.layers = torch.nn.ModuleList(
            RadixAttention(heads, shape.head_dim, self.content.scale, shape.kv_heads, layer)
            for layer in range(shape.layers)
        )
        self.allocator = RheoAllocator(self.pool, need_sort=False)
        self.rows = ReqToTokenPool(
            size=shape.frames, max_context_len=self.context, device="cpu", enable_memory_saver=False
        )
        self.free_rows = list(self.rows.free_slots)
        self.tree = sglang_versions.build_tree(self.allocator, self.rows)
        runner = SimpleNamespace(
            token_to_kv_pool=self.pool,
            req_to_token_pool=self.rows,
            server_args=SimpleNamespace(
                chunked_prefill_size=-1,
                tp_size=1,
                pp_size=1,
                dp_size=1,
                served_model_name="tokens",
                enable_metrics=False,
            ),
            model_config=SimpleNamespace(context_len=self.context),
            model=self.layers,
        )
        self.backend = RheoAttentionBackend(runner)
        engine = self.backend.engine
        assert isinstance(engine, ReferenceDecodeEngine)
        self.selector = engine.selector = ObservedSelector(engine.selector)
        self.start = self.table.counters()

    @property
    def tolerance(self) -> float:
        """Invariant 1's relative error."""
        return 1e-5 if self.shape.dtype == torch.float32 else 1e-2

    def slots(self, request: Request) -> torch.Tensor:
        """Slots of the request's computed tokens."""
        return self.rows.req_to_token[request.slot, : request.computed].long()

    def allocate(self, pages: int) -> torch.Tensor | None:
        """Slots of whole pages, evicting cached prefixes for them."""
        size = self.shape.page_size
        missing = pages * size - self.allocator.available_size()
        if missing > 0:
            self.tree.evict(EvictParams(num_tokens=missing))
        return self.allocator.alloc(pages * size)

    def admit(self, tokens: list[int]) -> Request | None:
        """Start a request on the longest cached prefix; None where no row or no page is free."""
        size = self.shape.page_size
        if not self.free_rows or len(tokens) >= self.context:
            return None
        found, node = sglang_versions.match(self.tree, tokens[: (len(tokens) - 1) // size * size])
        receipt = sglang_versions.lock(self.tree, node)
        slots = self.allocate(-(-(len(tokens) - found.numel()) // size))
        if slots is None:
            sglang_versions.unlock(self.tree, node, receipt)
            return None
        row = self.free_rows.pop()
        self.rows.req_to_token[row, : len(tokens)] = torch.cat([found, slots])[: len(tokens)].int()
        self.started += 1
        request = Request(
            f"request-{self.started}", tokens, row, found.numel(), node, receipt, computed=found.numel()
        )
        self.running.append(request)
        return request

    def prefill(self, requests: list[Request], chunk: int) -> None:
        """Run one chunk of each request's prompt, hold it against dense attention, and cache its pages."""
        starts = [request.computed for request in requests]
        ends = [
            min(len(request.tokens), start + chunk) for request, start in zip(requests, starts, strict=True)
        ]
        for request, end in zip(requests, ends, strict=True):
            request.computed = end
        lengths = torch.tensor(ends)
        parts = list(zip(requests, starts, ends, strict=True))
        batch = self._batch(
            ForwardMode.EXTEND,
            requests,
            lengths,
            torch.cat([self.slots(one)[start:] for one, start, _ in parts]),
        )
        batch.extend_prefix_lens_cpu = starts
        batch.extend_seq_lens_cpu = [end - start for _, start, end in parts]
        self.backend.init_forward_metadata(batch)
        for layer, attention in enumerate(self.layers):
            q, k, v = (
                torch.cat([Tokens.rows(table, layer, one.tokens[:end], start) for one, start, end in parts])
                for table in (self.content.q, self.content.k, self.content.v)
            )
            out = self.backend.forward_extend(q.flatten(1), k.flatten(1), v.flatten(1), attention, batch)
            rows = iter(out.view(q.shape))
            for request, start, end in parts:
                for position in range(start, end):
                    seen = torch.arange(end).expand(self.shape.kv_heads, end) <= position
                    expected, _ = self.content.attention(layer, request.tokens[:end], position, seen)
                    self.assert_close(next(rows), expected)
        for request in requests:
            self.cache(request)

    def decode(self, requests: list[Request], tokens: list[int]) -> list[Request]:
        """Append one token to each request and check every layer's output against attention over its selection.

        Returns the requests that found no page for their token; they were retracted.
        """
        size = self.shape.page_size
        retracted = []
        for request, token in zip(requests, tokens, strict=True):
            position = len(request.tokens)
            if position % size == 0:
                slots = self.allocate(1) if position < self.context else None
                if slots is None:
                    retracted.append(request)
                    continue
                slot = slots[0]
            else:
                slot = self.rows.req_to_token[request.slot, position - 1] + 1
            self.rows.req_to_token[request.slot, position] = slot
            request.tokens.append(token)
            request.computed += 1
        for request in retracted:
            self.abort(request)
        going = [request for request in requests if request not in retracted]
        if going:
            self._decode(going)
        return retracted

    def _decode(self, requests: list[Request]) -> None:
        lengths = torch.tensor([request.computed for request in requests])
        batch = self._batch(
            ForwardMode.DECODE, requests, lengths, torch.stack([self.slots(one)[-1] for one in requests])
        )
        self.backend.init_forward_metadata(batch)
        for layer, attention in enumerate(self.layers):
            q, k, v = (
                torch.stack([table[layer, one.tokens[-1], len(one.tokens) - 1] for one in requests])
                for table in (self.content.q, self.content.k, self.content.v)
            )
            out = self.backend.forward_decode(q.flatten(1), k.flatten(1), v.flatten(1), attention, batch)
            for row, request in enumerate(requests):
                attended = self.selected_tokens(row, len(request.tokens))
                last = len(request.tokens) - 1
                expected, mass = self.content.attention(layer, request.tokens, last, attended)
                self.assert_close(out[row].view(expected.shape), expected)
                self.masses.setdefault(request.rid, []).append(mass)

    def mean_mass(self, rid: str) -> float:
        """Attention mass that a request's selections covered, over its decode steps and layers."""
        return sum(self.masses[rid]) / len(self.masses[rid])

    def selected_tokens(self, row: int, length: int) -> torch.Tensor:
        """Tokens of the pages that one request's heads selected, ``[H, T]``, after checking invariant 8."""
        assert self.selector.latest is not None
        size, config = self.shape.page_size, self.config
        pages = -(-length // size)
        attended = torch.zeros(self.shape.kv_heads, pages * size, dtype=torch.bool)
        for head, columns in enumerate(self.selector.latest.selected[row].tolist()):
            chosen = [page for page in columns if page >= 0]
            assert len(chosen) == len(set(chosen))
            assert max(chosen) < pages, "a page beyond the sequence was selected"
            forced = {
                *range(min(config.sink_pages, pages)),
                *range(max(0, pages - config.window_pages), pages),
            }
            assert forced <= set(chosen), "sink, window or tail is missing"
            if config.budget_ratio == 1.0 or length <= config.dense_tokens:
                assert len(chosen) == pages
            for page in chosen:
                attended[head, page * size : (page + 1) * size] = True
        return attended[:, :length]

    def _batch(
        self, mode: ForwardMode, requests: list[Request], lengths: torch.Tensor, slots: torch.Tensor
    ) -> ForwardBatch:
        self.forwarded += slots.numel()
        return ForwardBatch(
            forward_mode=mode,
            batch_size=len(requests),
            input_ids=torch.zeros(slots.numel(), dtype=torch.int64),
            req_pool_indices=torch.tensor([request.slot for request in requests]),
            seq_lens=lengths,
            out_cache_loc=slots,
            seq_lens_sum=int(lengths.sum()),
            seq_lens_cpu=lengths,
            rids=[request.rid for request in requests],
        )

    def assert_close(self, out: torch.Tensor, expected: torch.Tensor) -> None:
        """Invariant 1: the relative error of an attention output."""
        assert plain.relative_error(out, expected) < self.tolerance

    def cache(self, request: Request) -> None:
        """Hand the request's full pages to the tree, which may know them already."""
        aligned = request.computed // self.shape.page_size * self.shape.page_size
        tokens = request.tokens[:aligned]
        self.tree.insert(
            InsertParams(
                key=sglang_versions.radix_key(tokens),
                value=self.slots(request)[:aligned].clone(),
                prev_prefix_len=request.protected,
            )
        )
        slots, node = sglang_versions.match(self.tree, tokens)
        assert slots.numel() == aligned
        self.rows.req_to_token[request.slot, request.protected : aligned] = slots[request.protected :].int()
        sglang_versions.unlock(self.tree, request.node, request.receipt)
        request.protected, request.node = aligned, node
        request.receipt = sglang_versions.lock(self.tree, node)

    def finish(self, request: Request) -> None:
        """The request ends: its full pages stay in the tree, its tail is freed."""
        self.cache(request)
        self.abort(request)

    def abort(self, request: Request) -> None:
        """The request is aborted or retracted: everything that is not the tree's is freed."""
        size = self.shape.page_size
        allocated = max(request.computed, len(request.tokens))
        slots = self.rows.req_to_token[request.slot, request.protected : -(-allocated // size) * size].long()
        self.allocator.free(slots[: allocated - request.protected])
        sglang_versions.unlock(self.tree, request.node, request.receipt)
        self.free_rows.append(request.slot)
        self.running.remove(request)

    def check(self) -> None:
        """Invariants 2, 3, 5 and 6 as far as they hold between any two steps."""
        self.table.check()
        self._check_pages_hold_their_tokens()
        owned = self.tree.evictable_size() + self.tree.protected_size()
        size = self.shape.page_size
        for request in self.running:
            owned += -(-(len(request.tokens) - request.protected) // size) * size
        assert self.allocator.available_size() == self.context - owned
        assert self.table.total_summarised_tokens == self.forwarded, "a shared page was described twice"
        assert self.table.counters()["frames_used"] <= self.table.counters()["frames_total"]

    def _check_pages_hold_their_tokens(self) -> None:
        """What is resident equals its host page unless it is newer; summaries are of the page's keys."""
        size, table = self.shape.page_size, self.table
        for layer in range(self.shape.layers):
            for head, page in (table.frame_of[layer] >= 0).nonzero().tolist():
                frame = self.pool.frames[layer, head, table.frame_of[layer, head, page].long()]
                if not table.unsaved[layer, page]:
                    assert torch.equal(frame, self.pool.host[layer, page, head]), (
                        "a frame is not its host page"
                    )
        for request in self.running:
            full = request.computed // size
            pages = slot_pages(self.slots(request)[: full * size], size)
            for layer in range(self.shape.layers):
                keys = Tokens.rows(self.content.k, layer, request.tokens[: full * size]).unflatten(
                    0, (full, size)
                )
                host = block_keys(self.pool.host[layer, pages], size)
                assert torch.equal(host, keys.permute(0, 2, 3, 1)), "a host page does not hold its tokens"
                rows = table.summaries[layer][:, pages].transpose(0, 1)
                if self.config.summary == "bound":
                    assert torch.equal(rows, torch.stack((keys.amin(1), keys.amax(1)), 2))
                else:
                    mean = keys.double().mean(1)[:, :, None]
                    accuracy = 1e-5 if self.shape.dtype == torch.float32 else 5e-2
                    torch.testing.assert_close(rows.double(), mean, rtol=accuracy, atol=accuracy)

    def drain(self) -> None:
        """Everything finishes and the cache is flushed: every counter is back at its start (invariant 6)."""
        for request in list(self.running):
            self.finish(request)
        self.tree.evict(EvictParams(num_tokens=self.context))
        assert self.allocator.available_size() == self.context
        assert self.tree.evictable_size() == self.tree.protected_size() == 0
        assert self.table.counters() == {**self.start, "total_summarised_tokens": self.forwarded}
        self.tree.reset()
        self.allocator.clear()
        assert self.table.counters() == {**self.start, "total_summarised_tokens": self.forwarded}
        self.table.settle()
        assert not self.table.stamped.any(), "whoever gets these pages next has not selected them"
