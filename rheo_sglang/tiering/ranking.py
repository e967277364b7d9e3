"""What policies share that rank a request's pages in every step and look at which of them were used."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch

from rheo_sglang.tiering.base import PolicyInputs, Selection, TieringPolicy, most_attended
from rheo_sglang.tiering.ranks import IDLE_DECAY, RankAverage


class Ranking(TieringPolicy):
    """A policy that values a page by its rank among its request's pages and by its uses.

    A decode step ranks by score and uses what it selects; the end of a prompt ranks by attention mass, and uses as many
    pages as the budget lets a decode step select, those with the greatest mass.

    Attributes
    ----------
    ranks
        Averages of ranks, the best 1, ``[L, H, N]``, float32.
    states
        What a subclass keeps for every page beside, each ``[L, H, N]``.
    """

    idle_decay = IDLE_DECAY
    state_bytes = 8
    state_dtypes: ClassVar[tuple[torch.dtype, ...]] = ()
    """Of ``states``; with ``ranks``, which take 4 bytes, they take ``state_bytes``."""

    def __init__(self, inputs: PolicyInputs) -> None:
        super().__init__(inputs)
        self.ranks = torch.zeros_like(self.worth)
        self.states = [torch.zeros_like(self.worth, dtype=dtype) for dtype in self.state_dtypes]
        self.used = torch.zeros_like(self.worth[0], dtype=torch.bool)
        self._average = RankAverage(self.ranks, inputs.triton)

    @property
    @abstractmethod
    def rank_alpha(self) -> float:
        """Weight of the newest step in ``ranks``, in (0, 1]."""
        ...

    @property
    def prompt_alpha(self) -> float:
        """Weight of a prompt in ``ranks``, in (0, 1]: that of a step, by default."""
        return self.rank_alpha

    @abstractmethod
    def value(
        self, ranks: torch.Tensor, used: torch.Tensor, states: list[torch.Tensor]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """What pages are worth, and their new states.

        Parameters
        ----------
        ranks
            ``[H, X]``, float32.
        used
            Whether the step or the prompt used them, ``[H, X]``, bool.
        states
            Of each page, ``[H, X]``.
        """
        ...

    def on_prefill(
        self,
        layer: int,
        mass: torch.Tensor,
        pages: torch.Tensor,
        num_pages: torch.Tensor,
        caps: torch.Tensor,
    ) -> None:
        """See `TieringPolicy.on_prefill`; one step's rank, by mass."""
        used = most_attended(mass, caps).transpose(0, 1).flatten(1)
        position = torch.arange(pages.shape[1], device=pages.device)
        index = pages.long().where(position < num_pages[:, None], 0).flatten().expand(used.shape[0], -1)
        self._update(layer, mass, index.where(used, 0), pages, num_pages, self.prompt_alpha)

    def on_step(
        self,
        layer: int,
        scores: torch.Tensor,
        selected: Selection,
        pages: torch.Tensor,
        num_pages: torch.Tensor,
    ) -> None:
        """See `TieringPolicy.on_step`."""
        used = selected.pages.transpose(0, 1).flatten(1).clamp(min=0).long()
        self._update(layer, scores, used, pages, num_pages, self.rank_alpha)

    def release(self, pages: torch.Tensor) -> None:
        """See `TieringPolicy.release`."""
        super().release(pages)
        for state in (self.ranks, *self.states):
            state.index_fill_(2, pages, 0)

    def fold(self, duplicates: torch.Tensor, survivors: torch.Tensor) -> None:
        """See `TieringPolicy.fold`; so with ranks and states."""
        super().fold(duplicates, survivors)
        for state in (self.ranks, *self.states):
            state[:, :, survivors] = torch.maximum(state[:, :, survivors], state[:, :, duplicates])

    def _update(
        self,
        layer: int,
        scores: torch.Tensor,
        used: torch.Tensor,
        pages: torch.Tensor,
        num_pages: torch.Tensor,
        alpha: float,
    ) -> None:
        """Rank by ``scores``, ``[B, H, M]``, and value all listed pages; ``used`` are pages, ``[H, X]``, 0 = none."""
        self._average.update(layer, scores, pages, num_pages, alpha, self.inputs.first_alpha)
        self.used.zero_().scatter_(1, used, True)
        position = torch.arange(pages.shape[1], device=pages.device)
        listed = pages.long().where(position < num_pages[:, None], 0).flatten()
        before = [state[layer][:, listed] for state in self.states]
        worth, after = self.value(self.ranks[layer][:, listed], self.used[:, listed], before)
        padding = listed == 0
        for state, values in zip((self.worth, *self.states), (worth, *after), strict=True):
            state[layer].index_copy_(1, listed, values.masked_fill(padding, 0))
