"""workspace: how the attention kernel spreads lists over blocks and warps, and what the blocks leave to be merged."""

from __future__ import annotations

from typing import NamedTuple

import torch

from rheo_kernels.cuda import load
from rheo_kernels.types import Partials

SHARED_BYTES = 230_400
"""Shared memory of a multiprocessor of Hopper that one block may use, less what the kernel declares itself."""
SHARED_BYTES_OF_TWO = 115_500
"""The same for each of two blocks."""
MIN_STAGES, MAX_STAGES = 3, 8
MOST_SPLITS = 48
LISTS_AT_ONCE = 8
"""Lists that a warp of an offloading block reads at once."""
PAGES_TO_BEGIN = 6
"""What starting and ending a block costs, in pages that it could attend meanwhile."""
TAIL_PAGE_BYTES = 36
"""What is read of a page left out beside its mean V and its estimates: its number, and the rest of a sector."""
TAIL_PAGES = 16
"""Pages left out that a warp folds at once."""


class Pipeline(NamedTuple):
    """Pages in flight of each warp, in the shared memory of a multiprocessor."""

    blocks: int
    """Blocks of a multiprocessor: two, so that one begins while another ends, unless pages are too large."""
    warps: int
    """Warps of a block that attend pages from frames."""
    stages: int
    """Pages in flight or in use per such warp. The warp that attends misses has one."""

    @classmethod
    def of(cls, block_bytes: int) -> Pipeline | None:
        """The pipeline for pages of ``block_bytes``, or None where not even two of them fit."""
        for blocks, shared_bytes in ((2, SHARED_BYTES_OF_TWO), (1, SHARED_BYTES)):
            slots = shared_bytes // block_bytes - 1
            for warps in (4, 2):
                if slots // warps >= MIN_STAGES:
                    return cls(blocks, warps, min(slots // warps, MAX_STAGES))
        return cls(1, 1, slots) if slots >= 2 else None

    @classmethod
    def of_shape(cls, dim: int, page_size: int, kv_bytes: int = 2) -> Pipeline:
        """The pipeline for a shape that `of` has one for, of numbers of ``kv_bytes``."""
        pipeline = cls.of(2 * kv_bytes * dim * page_size)
        assert pipeline is not None
        return pipeline


class TailPipeline(NamedTuple):
    """Pages left out that a block has in flight, in registers."""

    warps: int
    """Warps of a block that attend them."""
    tiles: int
    """Tiles of `TAIL_PAGES` that such a warp has in flight."""

    @classmethod
    def of(cls, dim: int, group: int, warps: int) -> TailPipeline:
        """What the registers of two blocks allow next to ``warps`` that attend pages from frames."""
        if dim * -(-group // 8) <= 128:
            return cls(2, 4 if warps <= 2 else 2)
        return cls(2, 1) if warps <= 2 else cls(1, 1)


class Workspace(NamedTuple):
    """What the blocks of one launch leave for the one that merges them."""

    parts: Partials
    """Every split of every list."""
    arrived: torch.Tensor
    """Splits stored so far, ``[B * H]``, int32; 0 between launches."""
    tail_lse: torch.Tensor
    """Base-2 LSE of the pages left out alone, in every split; as that of ``parts``."""

    @classmethod
    def allocate(
        cls,
        pairs: int,
        group: int,
        dim: int,
        page_size: int,
        width: int,
        device: torch.device,
        tail_width: int = 0,
        where: torch.device | str | None = None,
        kv_bytes: int = 2,
    ) -> Workspace:
        """Buffers for ``pairs = B * H`` lists of up to ``width`` pages, left out of up to ``tail_width``.

        Lists are split over the blocks that run at once on ``device``, less those that load and those that offload. The
        buffers are there too, unless ``where`` says otherwise. ``kv_bytes`` are those of a number in a page.
        """
        pipeline = Pipeline.of_shape(dim, page_size, kv_bytes)
        processors = torch.cuda.get_device_properties(device).multi_processor_count
        blocks = pipeline.blocks * (processors - load.BLOCKS) - offload_blocks(pairs, pipeline)
        tail_page = (dim / 2 + TAIL_PAGE_BYTES + 4 * group) / (2 * kv_bytes * dim * page_size)
        tail_tile = TAIL_PAGES * TailPipeline.of(dim, group, pipeline.warps).warps
        splits = num_splits(pairs, width, blocks, -(-tail_width // tail_tile), tail_tile * tail_page)
        where = device if where is None else where
        parts = Partials.allocate(pairs, group, dim, splits, where)
        return cls(parts, torch.zeros(pairs, dtype=torch.int32, device=where), torch.empty_like(parts.lse))


def offload_blocks(pairs: int, pipeline: Pipeline) -> int:
    """Blocks that offload ``pairs`` lists: as many as read all of them at once."""
    return -(-pairs // (LISTS_AT_ONCE * (pipeline.warps + 1)))


def num_splits(pairs: int, width: int, blocks: int, tail_tiles: int = 0, tail_tile: float = 0.0) -> int:
    """Into how many blocks to split each of ``pairs`` lists of up to ``width`` pages.

    The fewest that end first, where ``blocks`` run at once, a page takes one unit of time, each of ``tail_tiles`` tiles
    of pages left out ``tail_tile``, and a block `PAGES_TO_BEGIN` more.
    """

    def time(splits: int) -> float:
        pages = -(-width // splits) + -(-tail_tiles // splits) * tail_tile
        return -(-pairs * splits // blocks) * (pages + PAGES_TO_BEGIN)

    most = min(MOST_SPLITS, max(width, tail_tiles, 1))
    return min(range(1, most + 1), key=lambda splits: (time(splits), splits))
