"""What a prompt's last tokens attended corrects the estimates of its pages, for its own request alone."""

from __future__ import annotations

import math

import pytest
import torch

from rheo_kernels.reference import estimate, log_shares
from rheo_kernels.types import CORRECTION_STEP, Corrections
from rheo_kernels.types.subcentroids import subcentroid_layout
from rheo_sglang.decode.reference_residency import ReferenceResidency
from rheo_sglang.page_table import PageTable
from rheo_sglang.pools.blocks import frame_pool, host_pool
from rheo_sglang.prefill import Prefill, build_prefill_batch
from rheo_sglang.prefill.calibrate import MOST

LAYERS, HEADS, GROUP, DIM, PAGE_SIZE, PAGES, ROWS, COLUMNS = 2, 2, 2, 32, 16, 60, 4, 20
SCALE = DIM**-0.5


class Prompts:
    """Prefill of random prompts into pools on the CPU; the last queries of a pass are alike."""

    def __init__(self) -> None:
        self.table = PageTable(
            LAYERS, HEADS, DIM, PAGE_SIZE, PAGES, 4, "subcentroids4", "importance", torch.float32, "cpu", 0.3
        )
        host = host_pool(LAYERS, PAGES, HEADS, DIM, PAGE_SIZE, torch.float32)
        frames = frame_pool(LAYERS, HEADS, 4, DIM, PAGE_SIZE, torch.float32, "cpu")
        residency = ReferenceResidency(self.table, host, frames)
        self.codes = torch.full((LAYERS, ROWS, HEADS, COLUMNS), 7, dtype=torch.int8)
        self.prefill = Prefill(self.table, host, frames, PAGE_SIZE, residency, corrections=self.codes)
        self.pages = (1 + torch.randperm(PAGES - 1)).to(torch.int32)
        self.used = 0

    def keys(self, tokens: int) -> torch.Tensor:
        """``[tokens, H, D]``, in which one token of a row stands out now and then: what estimates do not see."""
        keys = torch.randn(tokens, HEADS, DIM)
        keys[::7] *= 4
        return keys

    def run(self, lengths: list[int], rows: list[int], done: int = 0) -> tuple[torch.Tensor, ...]:
        """Prefill prompts of which ``done`` tokens are cached; pages, and the last layer's queries and keys."""
        counts = [-(-length // PAGE_SIZE) for length in lengths]
        lists = torch.zeros((len(lengths), max(counts)), dtype=torch.int32)
        slots = []
        for prompt, (length, count) in enumerate(zip(lengths, counts, strict=True)):
            lists[prompt, :count] = self.pages[self.used : self.used + count]
            self.used += count
            position = torch.arange(length)
            slots.append(lists[prompt].long()[position // PAGE_SIZE] * PAGE_SIZE + position % PAGE_SIZE)
        batch = build_prefill_batch(lists, [0] * len(lengths), lengths, PAGE_SIZE)
        self.prefill.begin(batch, batch.num_pages, torch.tensor(rows))
        k = q = torch.empty(0)
        for layer in range(LAYERS):
            q = torch.randn(sum(lengths), HEADS * GROUP, DIM) * 3
            q[-16:] = q[-1] + torch.randn_like(q[-16:]) / 2
            k = self.keys(sum(lengths))
            self.prefill(layer, q, k, torch.randn_like(k), torch.cat(slots), batch, SCALE)
        return lists, q, k

    def error(self, lists: torch.Tensor, q: torch.Tensor, k: torch.Tensor, row: int | None) -> float:
        """Mean absolute error of the logarithms of one prompt's shares, for its last query, in nats."""
        tokens, layer = len(k), LAYERS - 1
        logits = torch.einsum("hgd,thd->hgt", q[-1].unflatten(0, (HEADS, GROUP)) * SCALE, k)
        padded = torch.nn.functional.pad(logits.softmax(-1).mean(1), (0, -tokens % PAGE_SIZE))
        true = padded.unflatten(1, (-1, PAGE_SIZE)).sum(-1).log()
        layout = subcentroid_layout(DIM, PAGE_SIZE, 4)
        summaries = self.table.summaries[layer, :, :, 0]
        lse = estimate(q[-1:], summaries, lists, torch.tensor([tokens]), SCALE, layout)
        corrections = None
        if row is not None:
            corrections = Corrections(self.codes[layer], torch.tensor([row], dtype=torch.int32))
        found = log_shares(lse, torch.tensor([lists.shape[1]]), HEADS, corrections)[0]
        return float((found - true).abs().mean())


def test_estimates_of_the_queries_that_follow_are_nearer_to_what_they_attend() -> None:
    torch.manual_seed(3)
    prompts = Prompts()
    lists, q, k = prompts.run([15 * PAGE_SIZE + 5], [2])
    assert prompts.error(lists, q, k, 2) < 0.7 * prompts.error(lists, q, k, None)


def test_a_prompt_writes_its_own_row_and_leaves_pages_beyond_it_as_they_are_estimated() -> None:
    prompts = Prompts()
    prompts.run([5 * PAGE_SIZE + 3, 3 * PAGE_SIZE], [3, 1])
    assert (prompts.codes[:, [0, 2]] == 7).all(), "rows of other requests"
    assert not prompts.codes[:, 3, :, 6:].any() and not prompts.codes[:, 1, :, 3:].any()
    assert prompts.codes[:, 3, :, :6].any() and prompts.codes[:, 1, :, :3].any()
    assert prompts.codes[:, [1, 3]].abs().max() <= MOST / CORRECTION_STEP


def test_more_prompts_than_are_looked_at_together_all_leave_theirs() -> None:
    prompts = Prompts()
    prompts.codes = prompts.codes.new_full((LAYERS, 8, HEADS, COLUMNS), 7)
    assert prompts.prefill.calibration is not None
    prompts.prefill.calibration.codes = prompts.codes
    prompts.run([PAGE_SIZE * 2 + 1] * 6, [0, 2, 3, 5, 6, 7])
    assert (prompts.codes[:, [1, 4]] == 7).all()
    assert not prompts.codes[:, [0, 2, 3, 5, 6, 7], :, 3:].any()


@pytest.mark.parametrize("tokens", [1, 5, PAGE_SIZE, 17])
def test_short_prompts_are_no_exception(tokens: int) -> None:
    prompts = Prompts()
    prompts.run([tokens], [0])
    assert math.isfinite(float(prompts.codes[:, 0].float().sum()))
    assert not prompts.codes[:, 0, :, -(-tokens // PAGE_SIZE) :].any()
