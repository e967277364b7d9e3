"""What the page table tells is right before the scheduler's notes are carried out, and telling changes nothing."""

from __future__ import annotations

import torch

from rheo_sglang.page_table import PageTable

PAGES, FRAMES = 12, 5


def filled() -> PageTable:
    """Pages 1 to 8 have summaries, 1 to 4 frames and worth; 4 is unsaved."""
    table = PageTable(2, 2, 16, 16, PAGES, FRAMES, "mean", "lru", torch.float32, "cpu")
    table.note_summaries(torch.arange(16, 9 * 16), 16)
    for page in range(1, 5):
        table.frame_of[:, :, page] = page - 1
        table.page_of[:, :, page - 1] = page
    table.policy.worth[:, :, 1:5] = 0.5
    table.unsaved[:, 4] = True
    return table


def tensors(table: PageTable) -> list[torch.Tensor]:
    parts = (table.frame_of, table.page_of, table.unsaved, table.summarised, table.policy.worth)
    return [part.clone() for part in parts]


def note(table: PageTable) -> None:
    """A finished request, and a page that equals one without a worth of its own."""
    table.release(torch.tensor([2, 4, 7]))
    table.fold(torch.tensor([1]), torch.tensor([6]))
    table.release(torch.tensor([1]))


def test_counters_are_those_after_the_notes_and_carry_none_out() -> None:
    table = filled()
    note(table)
    before = tensors(table)
    counted = table.counters()
    table.check()
    assert all(torch.equal(now, then) for now, then in zip(tensors(table), before, strict=True))
    assert counted["frames_used"] == 1 * 2 * 2
    assert counted["pages_resident"] == 1
    assert counted["pages_unsaved"] == 0
    assert counted["pages_summarised"] == 4
    assert counted["pages_important"] == 2, "page 3, and page 6 that inherits"
    table.settle()
    assert not torch.equal(table.frame_of, before[0])
    assert table.counters() == counted
    table.check()


def test_after_a_flush_every_counter_but_the_totals_is_back_at_its_start() -> None:
    table = filled()
    start = PageTable(2, 2, 16, 16, PAGES, FRAMES, "mean", "lru", torch.float32, "cpu").counters()
    note(table)
    table.clear()
    for _ in range(2):
        counted = table.counters()
        changed = {name for name, value in counted.items() if value != start[name]}
        assert changed == {"total_summarised_tokens"}
        assert counted["total_summarised_tokens"] == 8 * 16
        table.settle()


def test_stamps_go_with_freed_pages_and_survivors_inherit_the_latest() -> None:
    """Whoever gets a freed page next has not selected it."""
    table = filled()
    table.stamped[:, :, 1:8] = torch.arange(1, 8, dtype=torch.int32)
    note(table)
    table.fold(torch.tensor([5]), torch.tensor([3]))
    table.release(torch.tensor([5]))
    table.settle()
    for row in table.stamped.flatten(0, 1):
        assert row.tolist() == [0, 0, 0, 5, 0, 0, 6, 0, 0, 0, 0, 0]
