"""Residency under random operations: frames and pages stay inverse, and eviction loses nothing."""

from __future__ import annotations

import hypothesis.strategies as st
import torch
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rheo_kernels.reference import save
from rheo_kernels.types import RunnersUp, Selected
from rheo_sglang.decode.reference_residency import ReferenceResidency
from rheo_sglang.page_table import PageTable
from rheo_sglang.pools.blocks import frame_pool, host_pool
from rheo_sglang.tiering import POLICIES

LAYERS, HEADS, DIM, PAGE_SIZE, PAGES, FRAMES = 2, 2, 4, 16, 14, 4

page_sets = st.sets(st.integers(1, PAGES - 1), min_size=1, max_size=6)
layers = st.integers(0, LAYERS - 1)


class ResidencyMachine(RuleBasedStateMachine):
    """Pages are filled, written, selected, folded and freed; a dictionary knows what each must contain."""

    @initialize(
        policy=st.sampled_from(sorted(POLICIES.names())),
        summary=st.sampled_from(["bound", "mean"]),
        prewarm=st.sampled_from([0.0, 0.7]),
        seed=st.integers(0, 2**32 - 1),
    )
    def build(self, policy: str, summary: str, prewarm: float, seed: int) -> None:
        sizes = LAYERS, HEADS, DIM, PAGE_SIZE, PAGES, FRAMES
        self.table = PageTable(*sizes, summary, policy, torch.float32, "cpu", prewarm=prewarm)
        self.host = host_pool(LAYERS, PAGES, HEADS, DIM, PAGE_SIZE, torch.float32)
        self.frames = frame_pool(LAYERS, HEADS, FRAMES, DIM, PAGE_SIZE, torch.float32, "cpu")
        self.residency = ReferenceResidency(self.table, self.host, self.frames)
        self.random = torch.Generator().manual_seed(seed)
        self.content: dict[tuple[int, int], torch.Tensor] = {}
        self.allocated: set[int] = set()
        self.unsaved: set[tuple[int, int]] = set()
        self.start = self.table.counters()

    def used(self, pages: set[int]) -> list[int]:
        return sorted(pages & self.allocated)

    def noise(self, *shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=self.random)

    @rule(pages=page_sets)
    def fill(self, pages: set[int]) -> None:
        """Prefill whole pages that were free: host pages, summaries and importance."""
        fresh = sorted(pages - self.allocated)
        for page in fresh:
            for layer in range(LAYERS):
                self.content[layer, page] = self.noise(HEADS, 2, DIM * PAGE_SIZE)
                self.host[layer, page] = self.content[layer, page]
        self.allocated |= set(fresh)
        self.table.settle()
        self.table.note_summaries(torch.tensor(fresh, dtype=torch.int64) * PAGE_SIZE, PAGE_SIZE)
        self.table.summaries[:, :, fresh] = self.noise(*self.table.summaries[:, :, fresh].shape)
        self.table.policy.worth[:, :, fresh] = self.noise(LAYERS, HEADS, len(fresh))

    @rule(pages=page_sets)
    def write_tails(self, pages: set[int]) -> None:
        """Decode into some tail pages: claim them, and change them in their frames only."""
        self.table.settle()
        for layer in range(LAYERS):
            pinned = {page for where, page in self.unsaved if where == layer}
            tails = self.used(pages | pinned)[: FRAMES - len(pinned)]
            tails = [page for page in tails if page not in pinned] + sorted(pinned)[: len(pinned) // 2]
            self.residency.claim(layer, torch.tensor([*tails, 0], dtype=torch.int32))
            for page in tails:
                self.content[layer, page] = self.noise(HEADS, 2, DIM * PAGE_SIZE)
                for head in range(HEADS):
                    frame = int(self.table.frame_of[layer, head, page])
                    assert frame >= 0, "a claimed page has no frame"
                    self.frames[layer, head, frame] = self.content[layer, page][head]
                self.table.unsaved[layer, page] = True
                self.unsaved.add((layer, page))

    @precondition(lambda self: self.unsaved)
    @rule(data=st.data())
    def save(self, data: st.DataObject) -> None:
        """A tail page fills up."""
        self.table.settle()
        layer, page = data.draw(st.sampled_from(sorted(self.unsaved)))
        save(self.frames[layer], self.host[layer], self.table.frame_of[layer], torch.tensor([page]))
        self.table.unsaved[layer, page] = False
        self.unsaved.discard((layer, page))

    @rule(
        layer=layers,
        pages=st.lists(page_sets, min_size=HEADS, max_size=HEADS),
        others=st.lists(page_sets, min_size=HEADS, max_size=HEADS),
    )
    def select(self, layer: int, pages: list[set[int]], others: list[set[int]]) -> None:
        """One decode step of one layer: every head selects pages of its own, and leaves out others."""
        self.table.settle()
        chosen = [self.used(head) for head in pages]
        left_out = [
            sorted(set(self.used(rest)) - set(head)) for rest, head in zip(others, chosen, strict=True)
        ]
        room = max(map(len, left_out)) + 1
        rest_pages = torch.tensor(
            [[*rest, *[-1] * (room - len(rest))] for rest in left_out], dtype=torch.int32
        )
        counts = (rest_pages >= 0).sum(1, dtype=torch.int32)
        width = max(map(len, chosen)) + 1
        selected = torch.tensor([[*head, *[-1] * (width - len(head))] for head in chosen], dtype=torch.int32)
        frame = self.table.frame_of[layer].gather(1, selected.clamp(min=0).long())
        resident = (selected >= 0) & (frame >= 0)
        self.table.begin_step()
        self.table.list_pages(selected.clamp(min=0), torch.tensor([len(head) for head in chosen]))
        misses, hits = selected.masked_fill(resident, -1), frame.masked_fill(~resident, -1)
        nothing = torch.empty(0, dtype=torch.int32)
        found = Selected(selected[None], hits[None], misses[None], *[nothing] * 4)
        listed = torch.tensor([sorted(self.allocated)], dtype=torch.int32)
        scores, count = self.noise(1, HEADS, listed.shape[1]), torch.tensor([listed.shape[1]])
        self.table.policy.on_step(layer, scores, found, listed, count)
        self.residency.admit_missed(layer, found, RunnersUp(rest_pages[None], counts[None]))
        pinned = {page for where, page in self.unsaved if where == layer}
        for head, wanted in enumerate(map(set, chosen)):
            held = set(self.table.page_of[layer, head].tolist())
            if not wanted <= held:
                assert held <= wanted | pinned, "a selected page has no frame, and another page kept one"

    @rule(layer=layers, pages=page_sets)
    def offer(self, layer: int, pages: set[int]) -> None:
        """A prefilled request offers its best pages."""
        self.table.settle()
        nowhere = torch.empty(0)
        offered = torch.tensor(self.used(pages), dtype=torch.int64)
        decay = self.table.policy.prompt_decay(offered[None], torch.tensor([len(offered)]))
        self.residency.admit_seeded(layer, offered, decay, nowhere, nowhere, nowhere)

    @precondition(lambda self: len(self.allocated) >= 2)
    @rule(data=st.data())
    def fold(self, data: st.DataObject) -> None:
        """An insert finds a page cached already: its duplicate is folded and freed in one go."""
        pairs = st.lists(st.sampled_from(sorted(self.allocated)), min_size=2, max_size=2, unique=True)
        duplicate, survivor = data.draw(pairs)
        self.table.settle()
        importance = self.table.policy.worth[:, :, [duplicate, survivor]].amax(2)
        self.table.fold(torch.tensor([duplicate]), torch.tensor([survivor]))
        self.release({duplicate})
        self.table.settle()
        assert torch.equal(self.table.policy.worth[:, :, survivor], importance)

    @rule(pages=page_sets)
    def free(self, pages: set[int]) -> None:
        """A request ends or is aborted, also while it writes."""
        self.release(set(self.used(pages)))

    @rule()
    def flush(self) -> None:
        """The cache is flushed: every page is freed at once."""
        self.table.clear()
        self.forget(set(self.allocated))

    def release(self, pages: set[int]) -> None:
        self.table.release(torch.tensor(sorted(pages), dtype=torch.int64))
        self.forget(pages)

    def forget(self, pages: set[int]) -> None:
        self.allocated -= pages
        self.unsaved = {(layer, page) for layer, page in self.unsaved if page not in pages}
        for page in pages:
            for layer in range(LAYERS):
                del self.content[layer, page]

    @invariant()
    def pages_and_frames_are_each_others_inverse(self) -> None:
        self.table.check()

    @invariant()
    def nothing_is_lost(self) -> None:
        """Frames hold what was written, and so does the host page of everything that may be evicted."""
        self.table.settle()
        for (layer, page), content in self.content.items():
            if (layer, page) not in self.unsaved:
                assert torch.equal(self.host[layer, page], content)
            for head in range(HEADS):
                frame = int(self.table.frame_of[layer, head, page])
                if frame >= 0:
                    assert torch.equal(self.frames[layer, head, frame], content[head])
                else:
                    assert (layer, page) not in self.unsaved, "a page was evicted before it was saved"

    @invariant()
    def freed_pages_leave_nothing_behind(self) -> None:
        self.table.settle()
        freed = [page for page in range(PAGES) if page not in self.allocated]
        assert (self.table.frame_of[:, :, freed] == -1).all()
        assert not self.table.unsaved[:, freed].any()
        assert not self.table.summarised[freed].any()
        assert not self.table.policy.worth[:, :, freed].any()
        assert not self.table.policy.values(0, torch.tensor([freed] * HEADS)).any()

    def teardown(self) -> None:
        """Every counter returns to its start (invariant 6)."""
        if hasattr(self, "table"):
            self.release(set(self.allocated))
            described = self.table.total_summarised_tokens
            assert self.table.counters() == {**self.start, "total_summarised_tokens": described}


TestResidency = ResidencyMachine.TestCase
TestResidency.settings = settings(max_examples=40, stateful_step_count=30)


def test_claiming_a_resident_page_never_costs_it_its_frame() -> None:
    table = PageTable(1, 1, DIM, PAGE_SIZE, PAGES, 2, "mean", "importance", torch.float32, "cpu")
    host = host_pool(1, PAGES, 1, DIM, PAGE_SIZE, torch.float32)
    residency = ReferenceResidency(table, host, frame_pool(1, 1, 2, DIM, PAGE_SIZE, torch.float32, "cpu"))
    table.policy.worth[0, 0, [1, 2]] = torch.tensor([0.1, 0.9])
    residency.claim(0, torch.tensor([1, 2]))
    residency.claim(0, torch.tensor([3, 0, 1]))
    assert set(table.page_of[0, 0].tolist()) == {1, 3}, (
        "the least important page is claimed, so another leaves"
    )
