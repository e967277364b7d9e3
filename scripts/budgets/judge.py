"""Judged: what a way to select pages did to a model's next-token distributions and attention outputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import fmean, stdev

import torch

from budgets.model import Prompt
from budgets.steps import Outcome
from rheo_sglang.evaluation.intervals import NORMAL_95


@dataclass
class Judged:
    """Figures of one way, prompt after prompt; every list has one tensor a prompt.

    Attributes
    ----------
    divergence
        KL divergence from dense attention in nats, ``[T]``.
    margin
        Logarithm of the most over the second most probable token's probability, ``[T]``.
    same
        Whether the most probable token is dense attention's, ``[T]``.
    error
        Relative error of the attention output, ``[L, H, T, G]``.
    covered, estimated
        True and estimated share of the attention that is attended exactly, ``[L, H, T]``.
    selected
        Share of the pages, ``[L, H, T]``.
    """

    divergence: list[torch.Tensor] = field(default_factory=list)
    margin: list[torch.Tensor] = field(default_factory=list)
    same: list[torch.Tensor] = field(default_factory=list)
    error: list[torch.Tensor] = field(default_factory=list)
    covered: list[torch.Tensor] = field(default_factory=list)
    estimated: list[torch.Tensor] = field(default_factory=list)
    selected: list[torch.Tensor] = field(default_factory=list)

    def add(
        self, prompt: Prompt, found: torch.Tensor, outcomes: list[Outcome], shares: list[torch.Tensor]
    ) -> None:
        """Add a prompt's steps: log probabilities, outcomes and shares of selected pages of the layers."""
        self.divergence.append((prompt.dense.exp() * (prompt.dense - found)).sum(-1))
        top = found.topk(2, -1)
        self.margin.append(top.values[:, 0] - top.values[:, 1])
        self.same.append((top.indices[:, 0] == prompt.dense.argmax(-1)).float())
        self.error.append(torch.stack([one.error for one in outcomes]))
        self.covered.append(torch.stack([one.covered for one in outcomes]))
        self.estimated.append(torch.stack([one.estimated for one in outcomes]))
        self.selected.append(torch.stack(shares))

    def metrics(self) -> dict[str, float]:
        """Means and percentiles over all steps."""
        divergence, error = torch.cat(self.divergence), flat(self.error)
        found = {
            "selected": flat(self.selected).mean(),
            "kl": divergence.mean(),
            "kl_ci": torch.tensor(interval([one.mean().item() for one in self.divergence])),
            "kl_median": divergence.median(),
            "kl_95": divergence.quantile(0.95),
            "same": torch.cat(self.same).mean(),
            "error": error.mean(),
            "error_95": error.kthvalue(int(0.95 * error.numel())).values,
            "covered": flat(self.covered).mean(),
            "estimated": flat(self.estimated).mean(),
        }
        return {name: round(float(value), 5) for name, value in found.items()}

    def against(self, fixed: list[Judged]) -> dict[str, float]:
        """Logarithm of the KL over that of a fixed share that selects as much: its mean and half of its interval.

        For every prompt, the fixed share's is drawn from those measured, in logarithms of both, at the mean that this
        one selected over all prompts.
        """
        means = torch.tensor([float(flat(one.selected).mean().log()) for one in fixed])
        here = flat(self.selected).mean().log()
        right = int((means < here).sum().clamp(1, len(means) - 1))
        part = (here - means[right - 1]) / (means[right] - means[right - 1])
        ratios = []
        for number, mine in enumerate(self.divergence):
            low, high = (fixed[at].divergence[number].mean().log() for at in (right - 1, right))
            ratios.append(float(mine.mean().log() - low - part * (high - low)))
        return {"log_ratio": round(fmean(ratios), 4), "log_ratio_ci": round(interval(ratios), 4)}


def flat(parts: list[torch.Tensor]) -> torch.Tensor:
    """All numbers of some tensors."""
    return torch.cat([part.flatten() for part in parts])


def interval(values: list[float]) -> float:
    """Half of the 95 % interval of the mean."""
    return NORMAL_95 * stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def separation(signal: torch.Tensor, bad: torch.Tensor) -> float | None:
    """Probability that a bad step's signal is below a good one's (area under the ROC curve); None without both."""
    low, high = signal[bad], signal[~bad]
    if not len(low) or not len(high):
        return None
    below = (low[:, None] < high).float() + 0.5 * (low[:, None] == high).float()
    return round(float(below.mean()), 4)
