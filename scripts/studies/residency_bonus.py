#!/usr/bin/env python3
"""What a preference for pages that have a frame saves in misses, and what it costs in answers.

    PYTHONPATH=scripts python -m studies.residency_bonus

SmolLM2 reads real texts and decodes their own tokens behind some place of each. Every layer has frames for 1.25 times
what a budget of 10 % selects, filled behind the prompt and run by policy ``importance`` and the server's own page table
and residency; the steps select with a *bonus* for pages that have a frame, at that budget and at one of 12.5 %, for
which there are as many frames as it selects. What is left out is attended by its estimates. Writes
``docs/benchmarks/results/residency_bonus_cpu.json``: for each budget and bonus the hit rate, misses of a step, layer
and KV head, pages that got a frame, KL divergence of the next token from dense attention, and the share of attention
that was selected.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from budgets.model import Prompt, RecordedModel
from budgets.steps import View
from common.measurement import MODEL, write_result
from rheo_kernels.reference import favour, select
from rheo_kernels.types import ResidencyBonus
from rheo_sglang.config import PREWARM, RheoConfig
from rheo_sglang.decode.reference_engine import RUNNERS_UP
from rheo_sglang.evaluation.intervals import NORMAL_95
from rheo_sglang.evaluation.texts import KINDS
from rheo_sglang.prefill.seed import SEED_QUERIES
from rheo_sglang.replay.compact import Replayable
from rheo_sglang.replay.world import World
from rheo_sglang.traces.events import Prompts, Step
from studies.budget_rules import texts

BUDGET, FRAMES = 0.1, 1.25
CASES = {BUDGET: (0.0, 0.25, 0.5, 1.0, 2.0), FRAMES * BUDGET: (0.0, 1.0, 2.0)}
"""Bonuses by budget."""
ENDS = (3008,)
STEPS = 32
PAGE_SIZE, ROW_TOKENS = 16, 4
CONFIG = RheoConfig()


class FavouringWorld(World):
    """Frames of one layer behind one prompt; its steps select with a bonus.

    The list has one page more than the prompt: the tail, which holds the tokens that are decoded.

    Parameters
    ----------
    pages
        Of the prompt.
    heads
        KV heads.
    cap
        Pages that a step selects.
    frames
        Of a KV head.
    bonus
        In nats.
    """

    def __init__(self, pages: int, heads: int, cap: int, frames: int, bonus: float) -> None:
        about = Replayable([], pages + 2, 1, heads, PAGE_SIZE, cap)
        super().__init__(about, CONFIG.policy, frames, RUNNERS_UP, CONFIG.importance_alpha, PREWARM)
        self.pages, self.heads, self.cap = pages, heads, cap
        self.bonus = ResidencyBonus(bonus, torch.zeros(1))
        self.list = np.arange(1, pages + 2, dtype=np.int32)[None]
        self.tokens = np.array([pages * PAGE_SIZE + 1], dtype=np.int32)
        self.chosen = torch.empty(0)

    def read(self, mass: torch.Tensor) -> None:
        """The prompt, whose last tokens gave its pages these shares of their attention, ``[H, N]``."""
        seeds = torch.nn.functional.pad(mass, (0, 1))[None, None].numpy()
        caps = np.array([self.cap], dtype=np.int32)
        offered = self.list[0, : self.pages]
        self.prefill(Prompts(["request"], self.tokens, self.list, seeds, caps, offered))

    def decode(self, share: torch.Tensor) -> tuple[torch.Tensor, int, int]:
        """A step that estimates these shares, ``[H, N]``: its pages ``[H, N]``, its hits, and pages given a frame."""
        scores = torch.nn.functional.pad(share.log(), (0, 1), value=-math.inf)[None, None].numpy()
        nothing = np.zeros((1, 1, self.heads, 0), dtype=np.int32)
        event = Step(
            0, ["request"], self.tokens, self.list, scores, selected=nothing, num_selected=nothing.sum(3)
        )
        before = self.table.frame_of[0] >= 0
        counts = self.step(event)
        assert counts is not None
        loaded = int(((self.table.frame_of[0] >= 0) & ~before).sum())
        found = torch.zeros((self.heads, self.pages + 2), dtype=torch.bool)
        found.scatter_(1, self.chosen.long() + 1, True)
        return found[:, 1:-1], int(counts.hits.sum()), loaded

    def selection(self, event: Step, scores: torch.Tensor) -> torch.Tensor:
        """See `World.selection`: the best by their scores and the bonus."""
        pages, num_pages = torch.from_numpy(self.list), torch.tensor([self.pages + 1], dtype=torch.int32)
        ranked = favour(scores, pages, num_pages, self.table.frame_of[0], self.bonus)
        caps = torch.full((1, self.heads), self.cap, dtype=torch.int32)
        found = select(ranked, num_pages, caps, CONFIG.sink_pages, CONFIG.window_pages, self.cap)
        self.chosen = found[0]
        return found


class Measured:
    """One budget and bonus, prompt after prompt.

    Parameters
    ----------
    budget, bonus
        Share of the pages, and nats.
    """

    def __init__(self, budget: float, bonus: float) -> None:
        self.budget, self.bonus = budget, bonus
        self.hits = self.selected = self.loaded = self.samples = 0
        self.kl: list[float] = []
        self.same: list[float] = []
        self.covered: list[float] = []
        self.estimated: list[float] = []

    def add(self, model: RecordedModel, prompt: Prompt) -> None:
        """Decode a prompt's steps; the first ones are its last tokens, which attend everything."""
        pages = prompt.length // PAGE_SIZE
        cap, frames = (math.ceil(share * (pages + 1)) for share in (self.budget, FRAMES * BUDGET))

        def chosen(view: View, layer: int) -> torch.Tensor:
            heads, steps, _ = view.share.shape
            world = FavouringWorld(pages, heads, cap, frames, self.bonus)
            world.read(view.true_share[:, :SEED_QUERIES].mean(1))
            found = torch.ones_like(view.share, dtype=torch.bool)
            for step in range(SEED_QUERIES, steps):
                found[:, step], hits, loaded = world.decode(view.share[:, step])
                self.hits, self.loaded = self.hits + hits, self.loaded + loaded
                self.selected += cap * heads
                self.samples += heads
            return found

        logits, outcomes = model.decode(prompt, chosen)
        dense, logits = prompt.dense[SEED_QUERIES:], logits[SEED_QUERIES:]
        self.kl.append(float((dense.exp() * (dense - logits)).sum(-1).mean()))
        self.same.append(float((dense.argmax(-1) == logits.argmax(-1)).float().mean()))
        for field, kept in (("covered", self.covered), ("estimated", self.estimated)):
            kept.append(
                float(torch.stack([getattr(one, field)[:, SEED_QUERIES:] for one in outcomes]).mean())
            )

    def metrics(self) -> dict[str, float]:
        """Means; the interval is of 95 %, over prompts."""
        found = {
            "hit_rate": self.hits / self.selected,
            "misses": (self.selected - self.hits) / self.samples,
            "loaded": self.loaded / self.samples,
            "kl": fmean(self.kl),
            "kl_ci": NORMAL_95 * stdev(self.kl) / math.sqrt(len(self.kl)),
            "same": fmean(self.same),
            "covered": fmean(self.covered),
            "estimated": fmean(self.estimated),
        }
        return {name: round(value, 5) for name, value in found.items()}

    def against(self, other: Measured) -> dict[str, float]:
        """KL over another one's at the same prompts: logarithm of the mean ratio, and half of its interval."""
        ratios = [math.log(mine / theirs) for mine, theirs in zip(self.kl, other.kl, strict=True)]
        around = NORMAL_95 * stdev(ratios) / math.sqrt(len(ratios))
        return {"log_ratio": round(fmean(ratios), 4), "log_ratio_ci": round(around, 4)}


def main() -> None:
    """Read, decode and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=MODEL, help="checkpoint directory")
    parser.add_argument("--kinds", nargs="+", choices=[*KINDS, "quotation"], default=[*KINDS, "quotation"])
    parser.add_argument("--ends", type=int, nargs="+", default=list(ENDS), help="prompt lengths in tokens")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    model = RecordedModel(options.model, PAGE_SIZE, ROW_TOKENS)
    steps = SEED_QUERIES + STEPS
    cases = [Measured(budget, bonus) for budget, bonuses in CASES.items() for bonus in bonuses]
    metrics: dict[str, Any] = {
        "model": options.model.name,
        "steps": STEPS,
        "page_size": PAGE_SIZE,
        "frames_per_selected": FRAMES,
        "policy": CONFIG.policy,
    }
    names, took = [], 0.0
    for name, ids in tqdm(
        list(texts(options.model, options.kinds, max(options.ends), steps)), desc="texts", disable=None
    ):
        for prompt in model.read(name, ids, options.ends, steps):
            names.append(prompt.name)
            for case in cases:
                case.add(model, prompt)
                took = time.monotonic() - began
                print(
                    f"{took:6.0f} s  {prompt.name} {case.budget:g} {case.bonus:g} {case.kl[-1]:.5f}",
                    flush=True,
                )
        if len(names) > 1:
            metrics |= {"prompts": names, "budgets": by_budget(cases), "minutes": round(took / 60, 1)}
            write_result("residency_bonus_cpu", metrics)
    print(json.dumps(metrics["budgets"], indent=1))


def by_budget(cases: list[Measured]) -> dict[str, Any]:
    """Figures by budget and bonus; ratios are to the first case's."""
    found: dict[str, Any] = {}
    for case in cases:
        figures = {**case.metrics(), **case.against(cases[0])}
        found.setdefault(f"{case.budget:g}", {})[f"{case.bonus:g}"] = figures
    return found


if __name__ == "__main__":
    main()
