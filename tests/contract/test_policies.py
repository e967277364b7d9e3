"""Every tiering policy: one trace gives the same worth, resident pages and hits on the reference and on Triton."""

from __future__ import annotations

import random

import pytest
import torch
from policy_world import ALPHA, HEADS, LAYERS, PAGES, SELECTED_PAGES, World

from rheo_kernels.types import Selected
from rheo_sglang.tiering import POLICIES
from rheo_sglang.tiering.counting import SEEN, UNIT
from rheo_sglang.tiering.lfu import MOST_USES, USE
from rheo_sglang.tiering.lru import FIRST, LAST, SHIFT

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture(params=sorted(POLICIES.names()))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


PREWARM, IDLE_DECAY = 0.7071, 0.6937
"""With `ALPHA`, no simple fractions: ranks are quotients of small numbers, and one must not decay to another, as 3/7
does to 3/10 by 0.7."""


def spread(*shape: int) -> torch.Tensor:
    """Random orders, evenly spaced: where the kernel that ranks without a sort makes no error."""
    return torch.rand(shape).argsort(-1).argsort(-1) / shape[-1]


class Trace:
    """Requests that begin, share prefixes, decode, are folded into one another and end, at random."""

    def __init__(self, worlds: list[World], seed: int) -> None:
        self.worlds = worlds
        self.random = random.Random(seed)
        self.requests: list[list[int]] = []
        self.hits = 0

    def run(self, operations: int) -> None:
        for _ in range(operations):
            kinds = [self.begin, self.decode, self.decode, self.decode]
            if len(self.requests) > 1:
                kinds += [self.end, self.fold]
            self.random.choice(kinds)()
            self.compare()

    def free(self) -> list[int]:
        used = {page for pages in self.requests for page in pages}
        return [page for page in range(1, PAGES) if page not in used]

    def lists(self, requests: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        width = max(12, *map(len, requests))
        pages = torch.tensor([[*pages, *[0] * (width - len(pages))] for pages in requests], dtype=torch.int32)
        return pages, torch.tensor([len(pages) for pages in requests], dtype=torch.int32)

    def begin(self) -> None:
        """Up to three prompts end; a prefix may be cached."""
        free, prompts = self.free(), []
        for _ in range(self.random.randint(1, 3)):
            count = self.random.randint(4, 8)
            if len(free) < count:
                break
            prefix = self.random.choice(self.requests)[:3] if self.requests else []
            prompts.append(prefix + [free.pop() for _ in range(count)])
        if prompts:
            self.requests += prompts
            pages, num_pages = self.lists(prompts)
            mass = spread(LAYERS, len(prompts), HEADS, pages.shape[1])
            mass.masked_fill_(torch.arange(pages.shape[1]) >= num_pages[:, None, None], -torch.inf)
            caps = num_pages.clamp(max=SELECTED_PAGES)
            for world in self.worlds:
                world.prefill(pages, num_pages, mass, caps)

    def decode(self) -> None:
        """A step of up to three requests and a padded row."""
        if self.requests:
            batch = self.random.sample(self.requests, min(3, len(self.requests)))
            pages, num_pages = self.lists([*batch, []])
            scores = spread(LAYERS, len(batch) + 1, HEADS, pages.shape[1])
            hits = [world.step(pages, num_pages, scores) for world in self.worlds]
            assert all(torch.equal(hits[0], other) for other in hits)
            self.hits += int(hits[0].sum())

    def end(self) -> None:
        """A request ends, and its pages are freed unless others share them."""
        self.requests.remove(self.random.choice(self.requests))
        freed = torch.tensor(self.free())
        for world in self.worlds:
            world.table.release(freed.to(world.device))

    def fold(self) -> None:
        """A page of one request turns out to equal one of another."""
        one, other = self.random.sample(self.requests, 2)
        duplicate, survivor = self.random.choice(one), self.random.choice(other)
        if (
            duplicate != survivor
            and survivor not in one
            and all(duplicate not in r for r in self.requests if r != one)
        ):
            one[one.index(duplicate)] = survivor
            for world in self.worlds:
                pair = (torch.tensor([page], device=world.device) for page in (duplicate, survivor))
                world.table.fold(*pair)
                world.table.release(torch.tensor([duplicate], device=world.device))

    def compare(self) -> None:
        """Equal worth; equal residents, but for pages that are worth the same, which are then made equal."""
        first, *others = self.worlds
        for world in self.worlds:
            world.table.settle()
            world.table.check()
        for world in others:
            for layer in range(LAYERS):
                expected, values = first.values(layer), world.values(layer)
                torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-7)
                for head in range(HEADS):
                    mine, theirs = world.resident(layer, head), first.resident(layer, head)
                    assert len(mine) == len(theirs)
                    extra, absent = (
                        expected[head, sorted(pages)] for pages in (mine - theirs, theirs - mine)
                    )
                    torch.testing.assert_close(extra.sort()[0], absent.sort()[0], rtol=1e-5, atol=1e-7)
            for mine, theirs in (
                (world.table.frame_of, first.table.frame_of),
                (world.table.page_of, first.table.page_of),
                (world.policy.worth, first.policy.worth),
            ):
                mine.copy_(theirs)
        assert (first.policy.worth >= 0).all()
        assert (first.policy.worth <= 1).all()
        assert not first.policy.worth[:, :, [0, *self.free()]].any(), (
            "a page that nobody has is worth something"
        )


@pytest.mark.parametrize("seed", [0, 1, pytest.param(2, marks=pytest.mark.full)])
def test_reference_and_triton_value_and_keep_the_same_pages(
    name: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if POLICIES[name].idle_decay < 1:
        monkeypatch.setattr(POLICIES[name], "idle_decay", IDLE_DECAY)
    prewarm = PREWARM if seed else 0.0
    worlds = [World(name, "cpu", False, prewarm=prewarm), World(name, DEVICE, True, prewarm=prewarm)]
    trace = Trace(worlds, seed)
    trace.run(20)
    assert trace.hits > 0


def test_a_prompt_leaves_its_most_attended_pages_resident(name: str) -> None:
    world = World(name, DEVICE, triton=True, frames=5)
    pages, count = torch.arange(1, 21, dtype=torch.int32)[None], torch.tensor([20], dtype=torch.int32)
    mass = spread(LAYERS, 1, HEADS, 20)
    world.prefill(pages, count, mass, torch.tensor([5], dtype=torch.int32))
    for layer in range(LAYERS):
        for head in range(HEADS):
            best = set((1 + mass[layer, 0, head].topk(5).indices).tolist())
            assert world.resident(layer, head) == best


def test_a_prompts_used_pages_take_frames_from_pages_that_were_not(name: str) -> None:
    world = World(name, DEVICE, triton=True, frames=6)
    mass = spread(LAYERS, 1, HEADS, 6)
    count, cap = torch.tensor([6], dtype=torch.int32), torch.tensor([2], dtype=torch.int32)
    for first in (1, 11):
        pages = torch.arange(first, first + 6, dtype=torch.int32)[None]
        world.prefill(pages, count, mass, cap)
        world.table.begin_step()
    for layer in range(LAYERS):
        for head in range(HEADS):
            best = set((11 + mass[layer, 0, head].topk(2).indices).tolist())
            assert best <= world.resident(layer, head)


@pytest.mark.parametrize("name", ["importance", "recency"])
@pytest.mark.parametrize("triton", [False, True])
def test_a_prewarmed_prompt_takes_frames_from_a_request_that_just_ended(name: str, triton: bool) -> None:
    """Whatever that one's pages are worth, the page that the prompt attends most is worth more by the next step."""
    world = World(name, DEVICE if triton else "cpu", triton, frames=4, prewarm=0.7)
    one, other = (torch.arange(first, first + 8, dtype=torch.int32)[None] for first in (1, 11))
    count, cap = torch.tensor([8], dtype=torch.int32), torch.tensor([4], dtype=torch.int32)
    mass = spread(LAYERS, 1, HEADS, 8)
    world.prefill(one, count, mass, cap)
    for _ in range(8):
        world.step(one, count, mass)
    assert world.policy.worth[:, :, one[0].long()].max() > 0.9
    world.prefill(other, count, mass, cap)
    for layer in range(LAYERS):
        for head in range(HEADS):
            best = set((11 + mass[layer, 0, head].topk(2).indices).tolist())
            assert best <= world.resident(layer, head)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_can_be_captured_in_a_graph(name: str) -> None:
    eager, captured = (World(name, "cuda", triton=True) for _ in range(2))
    pages = torch.arange(1, 13, dtype=torch.int32, device="cuda").view(2, 6)
    count = torch.tensor([6, 5], dtype=torch.int32, device="cuda")
    scores = torch.zeros((2, HEADS, 6), device="cuda")
    chosen = torch.zeros((2, HEADS, 3), dtype=torch.int32, device="cuda")
    none = torch.full_like(chosen, -1)
    counts = torch.zeros((2, HEADS), dtype=torch.int32, device="cuda")
    found = Selected(chosen, none, chosen, none, none, counts, counts + 3)

    def step(world: World) -> None:
        world.policy.on_step(0, scores, found, pages, count)

    step(World(name, "cuda", triton=True))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(captured)
    for _ in range(40):
        scores.copy_(torch.rand(scores.shape))
        columns = (
            scores.masked_fill(torch.arange(6, device="cuda") >= count[:, None, None], -1).topk(3).indices
        )
        chosen.copy_(pages[:, None].expand(scores.shape).gather(2, columns))
        for world in (eager, captured):
            world.table.begin_step()
        step(eager)
        graph.replay()
        assert torch.equal(eager.policy.worth, captured.policy.worth)


def run_single_selections(world: World, selections: list[int]) -> list[tuple[int, set[int], int]]:
    """Steps that select one page each, and runners-up none: page, pages resident before, and hits."""
    seen = []
    for page in selections:
        before = world.resident(0, 0)
        lists = torch.tensor([[page]], dtype=torch.int32)
        hits = world.step(lists, torch.tensor([1]), torch.zeros(LAYERS, 1, HEADS, 1))
        seen.append((page, before, int(hits[0, 0, 0])))
    return seen


def zipf(count: int) -> list[int]:
    weights = [1 / page for page in range(1, 31)]
    return random.Random(7).choices(range(1, 31), weights, k=count)


@pytest.mark.parametrize("start", [0, LAST - FIRST - 40, 2**25 + 11])
def test_lru_keeps_what_a_plain_lru_keeps(start: int) -> None:
    world = World("lru", "cpu", triton=False, frames=6)
    world.table.activity.steps = start
    world.table.step.fill_(start)
    plain: list[int] = []
    for page, before, hits in run_single_selections(world, zipf(150)):
        assert before == set(plain)
        assert hits == (page in plain)
        plain = [page, *(other for other in plain if other != page)][:6]


def test_lfu_counts_uses_and_evicts_the_least_used() -> None:
    world = World("lfu", "cpu", triton=False, frames=6)
    uses = dict.fromkeys(range(PAGES), 0)
    resident: set[int] = set()
    for page, before, hits in run_single_selections(world, zipf(150)):
        assert hits == (page in before)
        uses[page] += 1
        left = resident - before
        if left and before - left:
            assert max(uses[gone] for gone in left) <= min(uses[kept] for kept in before & resident)
        resident = before
    counted = (world.policy.worth[0, 0] / USE).tolist()
    assert counted == [uses[page] for page in range(PAGES)]


def test_importance_averages_ranks() -> None:
    world = World("importance", "cpu", triton=False)
    expected = torch.zeros(LAYERS, HEADS, PAGES, dtype=torch.float64)
    pages, count = torch.arange(1, 8, dtype=torch.int32)[None], torch.tensor([7], dtype=torch.int32)
    for _ in range(20):
        scores = spread(LAYERS, 1, HEADS, 7)
        world.step(pages, count, scores)
        for layer in range(LAYERS):
            for head in range(HEADS):
                best_first = scores[layer, 0, head].argsort(descending=True).tolist()
                for place, column in enumerate(best_first):
                    old = expected[layer, head, 1 + column]
                    expected[layer, head, 1 + column] = (1 - ALPHA) * old + ALPHA * (1 - place / 7)
    torch.testing.assert_close(world.policy.worth.double(), expected, rtol=1e-5, atol=1e-6)


def hits_of_a_pattern(start: int) -> list[int]:
    world = World("lru", "cpu", triton=False, frames=8)
    world.table.activity.steps = start
    world.table.step.fill_(start)
    world.table.begin_step()
    draw = torch.Generator().manual_seed(5)
    pages, count = torch.arange(1, 31, dtype=torch.int32)[None], torch.tensor([30], dtype=torch.int32)
    drift = torch.rand(LAYERS, 1, HEADS, 30, generator=draw)
    hits = []
    for _ in range(80):
        drift = drift + torch.rand(drift.shape, generator=draw).pow(4)
        hits.append(int(world.step(pages, count, drift).sum()))
    return hits


def test_a_pattern_hits_as_often_whenever_lru_begins_to_count() -> None:
    """Steps 2^23 and beyond are told apart as the first ones are."""
    first = hits_of_a_pattern(0)
    assert 0 < sum(first) < 80 * LAYERS * HEADS * SELECTED_PAGES
    for start in (LAST - FIRST - 40, LAST + 3, 2**30):
        assert hits_of_a_pattern(start) == first


def test_renumbering_keeps_the_order_of_the_last_4m_steps() -> None:
    world = World("lru", "cpu", triton=False)
    worth = world.policy.worth
    numbers = torch.tensor([FIRST, 5, SHIFT, SHIFT + FIRST, SHIFT + FIRST + 1, LAST - 1, LAST])
    worth[:, :, 1] = SEEN
    worth[:, :, 2:9] = numbers * UNIT
    world.table.activity.steps = LAST - FIRST
    world.table.step.fill_(LAST - FIRST)
    before = world.policy.used(worth[0]).clone()
    world.table.begin_step()
    after = world.policy.used(worth[0])
    assert before.max() == 1.0
    assert after.max() < 0.6
    units = (worth[0, 0] / UNIT).tolist()
    assert units[:2] == [0, 1]
    assert units[2:6] == [FIRST] * 4
    assert units[6:9] == [FIRST + 1, LAST - 1 - SHIFT, LAST - SHIFT]
    assert (after > worth[0]).all(), "a page used now is worth more than any other"


def test_lfu_counts_beyond_4096_and_halves_before_it_ends() -> None:
    world = World("lfu", "cpu", triton=False)
    chosen = torch.tensor([[[3, 4]] * HEADS], dtype=torch.int32)
    found = Selected(chosen, chosen, chosen, chosen, chosen, chosen[:, :, 0], chosen[:, :, 0])
    nothing = torch.zeros(1, HEADS, 1)
    worth = world.policy.worth

    def use() -> None:
        world.table.begin_step()
        world.policy.on_step(0, nothing, found, chosen[:, 0], chosen[0, 0, :1])

    worth[0, :, 3], worth[0, :, 4] = 4096 * USE, 4097 * USE
    for _ in range(3):
        use()
    assert (worth[0, 0, [3, 4]] / USE).tolist() == [4099, 4100]
    worth[0, :, 1], worth[0, :, 2], worth[0, :, 5] = SEEN, USE, 7 * USE
    worth[0, :, 3], worth[0, :, 4] = (MOST_USES - 5) * USE, (MOST_USES - 1) * USE
    world.policy.most_uses = MOST_USES - 1
    use()
    assert worth[0, 0, 4] == 1.0
    use()
    assert worth[0, 0, 1] == SEEN
    assert (worth[0, 0, 2:6] / USE).tolist() == [1, MOST_USES // 2 - 1, MOST_USES // 2 + 1, 4]
    assert (worth + 1.0 > 1.0).sum() == (worth > 0).sum(), "added to SELECTED, every use still counts"
