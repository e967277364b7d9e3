"""RankAverage: an average over steps of how high attention ranked each page among its request's."""

from __future__ import annotations

import torch

from rheo_kernels import reference

IDLE_DECAY = 0.7
"""Factor per decode step on the value of a page that no running request lists: its rank in such a step is none.
Without it, pages of finished requests hold frames for as long as their prefixes are cached."""


class RankAverage:
    """Keeps exponential averages of ranks, the best 1, in ``[L, H, N]``, float32.

    With Triton, ranking and averaging are one kernel, see `rheo_kernels.triton.update_importance`, whose docstring
    bounds the error of a rank.

    Parameters
    ----------
    averages
        Written by `update`.
    triton
        Whether the kernel is Triton's; that of the reference otherwise.
    """

    def __init__(self, averages: torch.Tensor, triton: bool) -> None:
        self.averages = averages
        self._best_ranks = averages[0].to(torch.int32) if triton else None

    def update(
        self,
        layer: int,
        scores: torch.Tensor,
        pages: torch.Tensor,
        num_pages: torch.Tensor,
        alpha: float,
        first_alpha: float | None,
    ) -> None:
        """Rank the listed pages of one layer, and average.

        Parameters
        ----------
        layer
            Layer index.
        scores
            ``[B, H, M]``, float32; past the last page they mean nothing.
        pages, num_pages
            Page lists, ``[B, M]``, and pages of each request, ``[B]``, int32.
        alpha, first_alpha
            Weight of these ranks, in (0, 1], and for pages that were not ranked before, if it is another one.
        """
        averages = self.averages[layer]
        if self._best_ranks is None:
            past = torch.arange(scores.shape[2], device=scores.device) >= num_pages[:, None, None]
            ranks = reference.rank_normalise(scores.masked_fill(past, -torch.inf), num_pages)
            reference.update_importance(averages, ranks, pages, num_pages, alpha, first_alpha)
        else:
            from rheo_kernels.triton import update_importance

            shared = self._best_ranks if scores.shape[0] > 1 else None
            update_importance(scores, pages, num_pages, alpha, averages, shared, first_alpha)
