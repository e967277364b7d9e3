"""Both engines count the same working sets: sets of pages that requests selected in the last steps."""

from __future__ import annotations

import pytest
import torch
from engine_pair import LENGTHS, Pair, config_of
from engine_server import HEADS, LAYERS, PAGE_SIZE

from rheo_sglang.config import RheoConfig
from rheo_sglang.working_sets import WorkingSetCount

STEPS = 4


@pytest.fixture(autouse=True)
def counted_in_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rheo_sglang.working_sets.COUNTED_EVERY", 1)


def latest_of(pair: Pair) -> list[WorkingSetCount]:
    found = []
    for server in pair.servers:
        if server.device.type == "cuda":
            torch.cuda.synchronize()
        server.engine.working_sets.collect()
        assert server.engine.working_sets.latest is not None
        found.append(server.engine.working_sets.latest)
    return found


@pytest.mark.parametrize("steps", [1, 2, STEPS])
def test_both_engines_count_the_pages_of_the_last_steps(steps: int, rng: torch.Generator) -> None:
    pair = Pair(config_of("importance", working_set_steps=steps), 10, rng.device, torch.float32, 0, padding=1)
    selected: list[list[list[list[set[int]]]]] = []
    hits = torch.zeros((2, len(LENGTHS)), dtype=torch.int64)
    for number in range(STEPS):
        pair.step(number)
        window = selected[-steps:]
        for count in latest_of(pair):
            assert count.step == number + 1
            assert count.rids == tuple(str(row) for row in LENGTHS)
            for layer in range(LAYERS):
                for head in range(HEADS):
                    sets = [
                        set().union(*(step[layer][row][head] for step in window)) - {-1}
                        for row in range(len(LENGTHS))
                    ]
                    assert count.requests[:, layer, head].tolist() == [len(pages) for pages in sets]
                    assert count.total[layer, head] == sum(len(pages) for pages in sets)
            assert count.hits is not None and count.hits.tolist() == hits.tolist()
        pair.check_selections()
        selected.append(
            [
                [[set(head) for head in row] for row in found.pages.tolist()]
                for found in pair.selections[pair.gpu]
            ]
        )
        for found in pair.selections[pair.gpu]:
            hits += torch.stack((found.num_hits.sum(1), found.num_selected.sum(1)))
        pair.align()
    assert int(hits.min()) > 0
    assert max(latest_of(pair)[0].total.flatten()) > 10, (
        "working sets of more than there are frames are not seen"
    )


def test_requests_that_select_everything_have_all_their_pages_whether_a_step_selects_or_not(
    rng: torch.Generator,
) -> None:
    config = RheoConfig(dense_threshold=13 * PAGE_SIZE, summary="bound", cpu_threads=1)
    pair = Pair(config, 40, rng.device, torch.float32, 0)
    pair.step(0)
    pages = [-(-(length + 1) // PAGE_SIZE) for length in LENGTHS.values()]
    for count in latest_of(pair):
        assert (count.requests == torch.tensor(pages)[:, None, None].numpy()).all()
        assert (count.total == sum(pages)).all()
    assert pair.gpu.engine.variant.dense, "the step selected"
