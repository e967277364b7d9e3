"""SUMMARIES: kinds of page summaries, those that are served and others that were tried; decoded, with their bytes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from rheo_kernels import reference
from rheo_kernels.types.subcentroids import subcentroid_layout
from selection.low_rank import low_rank, low_rank_bytes
from selection.rounding import hadamard, symmetric, symmetric_bytes

CLUSTER_PASSES = 4


class Summary(NamedTuple):
    """Decoded summaries of all pages of a layer: each estimates its page's log-sum-exp."""

    rows: torch.Tensor
    """``[H, N, R, D]``, float32; a row stands for ``P / R`` tokens unless ``counts`` says otherwise."""
    steps: torch.Tensor | None = None
    """Quantisation step of every dimension ``[H, N, D]``, if the estimate corrects for it."""
    counts: torch.Tensor | None = None
    """Tokens that a row stands for, ``[H, N, R]``."""
    variance: torch.Tensor | None = None
    """Variance of the keys around their row in every dimension, ``[H, N, D]``, if the estimate has that term."""


class Kind(NamedTuple):
    """A way to summarise pages of keys ``[H, N, P, D]``."""

    summarise: Callable[[torch.Tensor], Summary]
    page_bytes: Callable[[int, int], int]
    """Bytes of the keys' part for a head dimension and page size; a mean V for the tail is not among them."""


def row_means(keys: torch.Tensor, row_tokens: int) -> torch.Tensor:
    """``[H, N, P, D] -> [H, N, R, D]``."""
    return keys.unflatten(2, (-1, row_tokens)).mean(3)


def subcentroids(keys: torch.Tensor, row_tokens: int) -> Summary:
    """What `rheo_kernels.reference.summarise_subcentroids` stores, decoded: what a server has."""
    layout = subcentroid_layout(keys.shape[3], keys.shape[2], row_tokens)
    counts = torch.full(keys.shape[:2], keys.shape[2], device=keys.device)
    page = reference.decode_subcentroids(reference.summarise_subcentroids(keys, keys, counts, layout), layout)
    return Summary(page.rows, page.steps)


def subcentroid_bytes(dim: int, page_size: int, row_tokens: int) -> int:
    """Bytes of rows, centre and their scales."""
    return subcentroid_layout(dim, page_size, row_tokens).value_offset - 1


def clusters(keys: torch.Tensor, row_tokens: int) -> Summary:
    """Rows of tokens that are alike instead of consecutive, with their counts, in the layout of sub-centroids.

    k-means of a page's keys that begins with keys far from each other; a row may be left without tokens.
    """
    rows = keys.shape[2] // row_tokens
    between = torch.cdist(keys, keys)
    first = (keys - keys.mean(2, keepdim=True)).norm(dim=-1).argmax(-1, keepdim=True)
    chosen = [first]
    nearest = torch.take_along_dim(between, first[..., None], 2)[:, :, 0]
    for _ in range(rows - 1):
        chosen.append(nearest.argmax(-1, keepdim=True))
        nearest = torch.minimum(nearest, torch.take_along_dim(between, chosen[-1][..., None], 2)[:, :, 0])
    middles = torch.take_along_dim(keys, torch.cat(chosen, -1)[..., None], 2)
    for _ in range(CLUSTER_PASSES):
        mine = torch.cdist(keys, middles).argmin(-1)
        found, counts = means_of(keys, mine, rows)
        middles = torch.where(counts[..., None] > 0, found, middles)
    stored = subcentroids(middles.repeat_interleave(row_tokens, 2), row_tokens)
    return stored._replace(counts=counts)


def outlier(keys: torch.Tensor, row_tokens: int) -> Summary:
    """A row for the key that lies farthest from its page's mean, and rows of consecutive tokens for the others."""
    page_size = keys.shape[2]
    rows = page_size // row_tokens
    alone = (keys - keys.mean(2, keepdim=True)).norm(dim=-1).argmax(-1, keepdim=True)
    place = torch.arange(page_size, device=keys.device)
    among_others = place - (place > alone).long()
    mine = 1 + among_others * (rows - 1) // (page_size - 1)
    mine.scatter_(-1, alone, 0)
    middles, counts = means_of(keys, mine, rows)
    return subcentroids(middles.repeat_interleave(row_tokens, 2), row_tokens)._replace(counts=counts)


def means_of(keys: torch.Tensor, mine: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean keys ``[H, N, R, D]`` of the tokens that share a row of ``mine``, ``[H, N, P]``, 0 without any; how many."""
    member = torch.nn.functional.one_hot(mine, rows).float().transpose(2, 3)
    counts = member.sum(-1)
    return member @ keys / counts.clamp(min=1)[..., None], counts


def with_variance(keys: torch.Tensor, row_tokens: int) -> Summary:
    """Sub-centroids and, in 8 bits, how far keys lie from their rows: the second term of the log-sum-exp."""
    around = keys.unflatten(2, (-1, row_tokens))
    spread = (around - around.mean(3, keepdim=True)).square().mean((2, 3)).sqrt()
    return subcentroids(keys, row_tokens)._replace(variance=symmetric(spread, 8).square())


def rotated(keys: torch.Tensor, row_tokens: int, centre: str) -> Summary:
    """Rows in 4 bits behind a rotation: around nothing, the page's mean in 8 bits, or the mean of all pages."""
    turn = hadamard(keys.shape[3]).to(keys.device)
    rows = row_means(keys, row_tokens) @ turn
    middle = torch.zeros_like(rows[:, :1, :1])
    if centre == "page":
        middle = symmetric(rows.mean(2, keepdim=True), 8)
    elif centre == "global":
        middle = rows.mean((1, 2), keepdim=True)
    return Summary((middle + symmetric(rows - middle, 4)) @ turn.T)


def _rebuilt(keys: torch.Tensor, rank: int) -> Summary:
    """Every key of a page, from its mean and directions."""
    return Summary(low_rank(keys, rank))


def _rows(row_tokens: int) -> dict[str, Kind]:
    """Every kind that has a row for as many tokens."""

    def per_row(
        one: Callable[[int], int], more: Callable[[int], int] = lambda _: 0
    ) -> Callable[[int, int], int]:
        return lambda dim, page_size: page_size // row_tokens * one(dim) + more(dim)

    four = partial(symmetric_bytes, bits=4)
    eight = partial(symmetric_bytes, bits=8)
    served = partial(subcentroid_bytes, row_tokens=row_tokens)
    return {
        f"rows{row_tokens}-bf16": Kind(
            lambda keys: Summary(row_means(keys, row_tokens).bfloat16().float()), per_row(lambda dim: 2 * dim)
        ),
        f"rows{row_tokens}-int8": Kind(
            lambda keys: Summary(symmetric(row_means(keys, row_tokens), 8)), per_row(eight)
        ),
        f"subcentroids{row_tokens}": Kind(partial(subcentroids, row_tokens=row_tokens), served),
        f"rows{row_tokens}-rotated": Kind(
            partial(rotated, row_tokens=row_tokens, centre="none"), per_row(four)
        ),
        f"rows{row_tokens}-rotated-page": Kind(
            partial(rotated, row_tokens=row_tokens, centre="page"), per_row(four, eight)
        ),
        f"rows{row_tokens}-rotated-global": Kind(
            partial(rotated, row_tokens=row_tokens, centre="global"), per_row(four)
        ),
        f"clusters{row_tokens}": Kind(
            partial(clusters, row_tokens=row_tokens),
            lambda dim, page_size: served(dim, page_size) + page_size // row_tokens,
        ),
        f"outlier{row_tokens}": Kind(partial(outlier, row_tokens=row_tokens), served),
        f"variance{row_tokens}": Kind(
            partial(with_variance, row_tokens=row_tokens),
            lambda dim, page_size: served(dim, page_size) + eight(dim),
        ),
    }


SUMMARIES: dict[str, Kind] = {
    "mean": Kind(
        lambda keys: Summary(keys.mean(2, keepdim=True).bfloat16().float()), lambda dim, page_size: 2 * dim
    ),
    **{name: kind for row_tokens in (2, 4, 8) for name, kind in _rows(row_tokens).items()},
    **{
        f"rank{rank}": Kind(partial(_rebuilt, rank=rank), partial(low_rank_bytes, rank=rank))
        for rank in (1, 2, 4)
    },
}
"""Every kind that estimates, by name; ``bound`` and ``oracle`` are none of them."""
