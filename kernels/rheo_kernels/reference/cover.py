"""cover: how many of the best pages leave no more of the estimated attention than a floor allows."""

from __future__ import annotations

import torch

from rheo_kernels.types.shares import FRACTION, LEVELS, LOG_STEP, MANTISSA, STEPS


def cover(scores: torch.Tensor, floor: torch.Tensor) -> torch.Tensor:
    """Count the best pages that have to be selected for the selection to hold ``floor`` of the attention.

    What a selection holds is 1 less what it leaves out, so neither pages that are selected anyway nor the tail page
    need a share that is known. Of pages at the same level of shares (see `rheo_kernels.types.shares`) as many are
    left out as may be.

    Parameters
    ----------
    scores
        Natural logarithms of shares, ``[B, H, M]``, float32, at most 1 together; ``-inf`` for pages that are selected
        anyway and those that do not exist. A score of 0 or more, and NaN, counts as a page that is always needed.
    floor
        ``[B]``, float32; at most 0 (and NaN) needs no page, 1 or more every page that there is.

    Returns
    -------
    torch.Tensor
        ``[B, H]``, int32.
    """
    level, share = fixed_point(scores)
    allowance = torch.floor((1 - floor.nan_to_num(0).clamp(0, 1)) * 2.0**FRACTION).long()[:, None]
    levels = torch.zeros((*scores.shape[:2], LEVELS + 2), dtype=torch.int64, device=scores.device)
    pages = levels.scatter_add(2, level.long() + 1, torch.ones_like(share))
    masses = levels.scatter_add(2, level.long() + 1, share)
    beyond = masses.flip(2).cumsum(2).flip(2) - masses  # of the levels behind each one
    cut = (beyond > allowance[..., None]).sum(2, keepdim=True)  # the first level behind which enough is left
    within = pages.cumsum(2).gather(2, cut)[..., 0]
    tied = pages.gather(2, cut)[..., 0]
    each = masses.gather(2, cut)[..., 0] // tied.clamp(min=1)
    spare = (allowance - beyond.gather(2, cut)[..., 0]) // each.clamp(min=1)
    needed = within - torch.minimum(spare, tied).where(each > 0, 0)
    present = (scores != -torch.inf).sum(2)
    needed = needed.where((floor < 1)[:, None], present)
    return needed.where((floor > 0)[:, None], 0).to(torch.int32)


def fixed_point(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Levels of scores, int32, -1 where they are no logarithms of shares, and the shares of these levels, int64."""
    depth = torch.floor(-scores * LOG_STEP)
    valid = scores < 0
    level = depth.where(valid, -1.0).clamp(max=float(LEVELS)).to(torch.int32)
    octave, step = level // STEPS, level % STEPS
    mantissa = (torch.exp2(step.float() / -STEPS) * 2**MANTISSA + 0.5).to(torch.int64)
    share = (mantissa << (FRACTION - MANTISSA)) >> octave.clamp(min=0)
    return level, share.where(valid & (level < LEVELS), 0)
