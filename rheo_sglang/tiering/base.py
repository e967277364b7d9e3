"""TieringPolicy: the interface of every tiering policy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from rheo_kernels.types import IdleDecay
from rheo_sglang.registry import Registry
from rheo_sglang.tiering.activity import Activity

SELECTED = 1.0
"""Added to the worth of a page that the current step selected: worths lie in [0, 1], so it outranks all others."""


class Selection(Protocol):
    """What a policy may read of one layer's selection; see `rheo_kernels.types.Selected`."""

    @property
    def pages(self) -> torch.Tensor:
        """Selected logical pages, ``[B, H, S]``, int32, -1 = none."""
        ...

    @property
    def hits(self) -> torch.Tensor:
        """Frames of those that were resident, else -1, ``[B, H, S]``, int32."""
        ...

    @property
    def misses(self) -> torch.Tensor:
        """Those without a frame, else -1, ``[B, H, S]``, int32."""
        ...


@dataclass(frozen=True)
class PolicyInputs:
    """What a policy is built from.

    Attributes
    ----------
    layers, kv_heads, pages
        ``L``, ``H`` and ``N`` of this rank, the padding page 0 included.
    activity
        Step counter, and when each page was last listed by a running request; read only.
    importance_alpha
        Weight of the newest step in an average over steps, in (0, 1].
    triton
        Whether the policy's kernels are Triton's; those of the references otherwise.
    prewarm
        Weight in such an average of what a prompt's last tokens attended, in (0, 1]; a page's first rank then counts
        in full. 0: both weigh as much as a step.
    """

    layers: int
    kv_heads: int
    pages: int
    activity: Activity
    importance_alpha: float = 0.3
    triton: bool = False
    prewarm: float = 0.0

    @property
    def prompt_alpha(self) -> float:
        """Weight of a prompt's ranks in an average over steps."""
        return self.prewarm or self.importance_alpha

    @property
    def first_alpha(self) -> float | None:
        """Weight of the first rank of a page; None where it is that of any other."""
        return 1.0 if self.prewarm else None


class TieringPolicy(ABC):
    """Values pages for admission and eviction.

    A page's value is its ``worth``, times ``idle_decay`` for every decode step since a running request last listed
    it. Kernels that weigh frames read ``worth`` directly.

    A subclass has a ``name``, says in `on_prefill` and `on_step` what a prompt and a decode step do to ``worth``, and
    overrides `begin_step`, `release` and `fold` where it keeps state beside it. `on_prefill` and `on_step` have fixed
    shapes and no host synchronisation; `on_step` is captured in CUDA graphs, so it may not depend on anything that the
    host changes between steps.

    Parameters
    ----------
    inputs
        Sizes, the step counter, settings.

    Attributes
    ----------
    worth
        ``[L, H, N]``, float32 in [0, 1]; 0 for pages that neither a prompt nor a step has used, and for page 0.
    """

    name: ClassVar[str]
    """What the configuration calls it."""
    state_bytes: ClassVar[int] = 0
    """Bytes that it keeps for a page in each layer and KV head beside ``worth``."""
    idle_decay: ClassVar[float] = 1.0
    """Factor in (0, 1] on a page's value for every decode step in which no running request listed it."""

    def __init__(self, inputs: PolicyInputs) -> None:
        self.inputs = inputs
        self.activity = inputs.activity
        shape = (inputs.layers, inputs.kv_heads, inputs.pages)
        self.worth = torch.zeros(shape, dtype=torch.float32, device=inputs.activity.step.device)

    def begin_step(self) -> None:  # noqa: B027
        """Do what has to be done now and then, before a decode step and outside its graph: nothing by default.

        ``activity.steps``, on the host, counts this step already.
        """

    @abstractmethod
    def on_prefill(
        self,
        layer: int,
        mass: torch.Tensor,
        pages: torch.Tensor,
        num_pages: torch.Tensor,
        caps: torch.Tensor,
    ) -> None:
        """Learn what the last tokens of ended prompts attended, in one layer.

        A policy that counts uses counts one for each of the ``caps`` pages with the greatest mass: those that a decode
        step, with the same budget, would have selected. `most_attended` marks them.

        Parameters
        ----------
        layer
            Layer index.
        mass
            Share of the attention that each page got, ``[E, H, M]``, float32, ``-inf`` past the last page.
        pages
            Page lists, ``[E, M]``, int32; entries past ``num_pages`` are undefined.
        num_pages
            Pages of each prompt, ``[E]``, int32.
        caps
            Most pages that a decode step of each request may select per KV head, ``[E]``, int32.
        """
        ...

    @abstractmethod
    def on_step(
        self,
        layer: int,
        scores: torch.Tensor,
        selected: Selection,
        pages: torch.Tensor,
        num_pages: torch.Tensor,
    ) -> None:
        """Learn what one decode step selected in one layer, before its misses are admitted.

        Parameters
        ----------
        layer
            Layer index.
        scores
            Scores of all pages, ``[B, H, M]``, float32; past the last page they mean nothing, and on a GPU the tail
            page's may lack its new token.
        selected
            The selection, hits and misses.
        pages
            Page lists, ``[B, M]``, int32; entries past ``num_pages`` are undefined.
        num_pages
            Pages of each request, ``[B]``, int32; 0 in padded rows.
        """
        ...

    def release(self, pages: torch.Tensor) -> None:
        """Forget freed pages, ``[X]``, int64."""
        self.worth.index_fill_(2, pages, 0.0)

    def restore(self, pages: torch.Tensor, worth: torch.Tensor) -> None:
        """Give pages that came back from storage, ``[X]``, int64, what they were worth, ``[L, H, X]``."""
        self.worth[:, :, pages] = worth

    def fold(self, duplicates: torch.Tensor, survivors: torch.Tensor) -> None:
        """Give survivors the larger worth of theirs and their duplicates', both ``[X]``, int64."""
        pair = torch.maximum(self.worth[:, :, survivors], self.worth[:, :, duplicates])
        self.worth[:, :, survivors] = pair

    @property
    def decay(self) -> IdleDecay | None:
        """What kernels need to apply ``idle_decay``; None where it is 1."""
        if self.idle_decay == 1.0:
            return None
        return IdleDecay(self.idle_decay, self.activity.step, self.activity.last_active)

    def prompt_decay(self, pages: torch.Tensor, num_pages: torch.Tensor) -> IdleDecay | None:
        """What `decay` is at the end of prompts.

        With pre-warming it is that after one more step, which lists the prompts' pages and no others: a request that
        ended just before would otherwise keep its frames against them until the next step begins.

        Parameters
        ----------
        pages, num_pages
            Page lists of the prompts, ``[B, M]``, and pages of each, ``[B]``, int32.
        """
        if self.decay is None or not self.inputs.prewarm:
            return self.decay
        step = self.activity.step + 1
        position = torch.arange(pages.shape[1], device=pages.device)
        listed = pages.long().masked_fill(position >= num_pages[:, None], 0)
        last_active = self.activity.last_active.clone()
        last_active[listed.flatten()] = step
        return IdleDecay(self.idle_decay, step, last_active)

    def values(self, layer: int, pages: torch.Tensor) -> torch.Tensor:
        """What pages are worth in one layer now.

        Parameters
        ----------
        layer
            Layer index.
        pages
            Logical pages per KV head, ``[H, X]``, int64, all valid.

        Returns
        -------
        torch.Tensor
            ``[H, X]``, float32 in [0, 1].
        """
        worth = self.worth[layer].gather(1, pages)
        if self.idle_decay == 1.0:
            return worth
        idle = self.activity.step - self.activity.last_active[pages]
        return worth * torch.pow(self.idle_decay, idle)


def most_attended(mass: torch.Tensor, caps: torch.Tensor) -> torch.Tensor:
    """Mark the pages with the greatest mass, ``caps`` of each prompt and KV head.

    Parameters
    ----------
    mass
        ``[E, H, M]``, float32, ``-inf`` past the last page.
    caps
        ``[E]``, int32, at most each prompt's pages.

    Returns
    -------
    torch.Tensor
        ``[E, H, M]``, bool.
    """
    order = mass.argsort(dim=2, descending=True, stable=True)
    place = torch.arange(mass.shape[2], device=mass.device)
    within = (place < caps[:, None, None]).expand_as(order)
    return torch.zeros_like(mass, dtype=torch.bool).scatter_(2, order, within)


POLICIES: Registry[TieringPolicy] = Registry("policy", TieringPolicy)
"""Tiering policies by name."""
