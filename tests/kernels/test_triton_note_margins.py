"""note_margins keeps the two largest logits' difference of every request that is one, exactly."""

from __future__ import annotations

import pytest
import torch
from triton_cases import normal

from rheo_kernels import reference

ROWS = 9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [2, 100, 4096, 9000])
def test_margins_are_the_references(vocabulary: int, dtype: torch.dtype, rng: torch.Generator) -> None:
    from rheo_kernels import triton as kernels

    logits = normal((7, vocabulary + 3), dtype, rng)[:, :vocabulary]
    logits[1, -1] = logits[1, 0] = 50
    logits[2, : vocabulary - 1] = -torch.inf
    logits[3] = torch.nan
    logits[4, 0] = torch.nan
    logits[5] = torch.inf
    rows = torch.tensor([3, 8, 1, 0, 5, 7, 2], device=rng.device)
    num_pages = torch.tensor([4, 1, 2, 9, 3, 1, 0], dtype=torch.int32, device=rng.device)
    expected = torch.full((ROWS,), 77.0, device=rng.device)
    margins = expected.clone()
    reference.note_margins(logits, rows, num_pages, expected)
    kernels.note_margins(logits, rows, num_pages, margins)
    assert torch.equal(margins.nan_to_num(-1), expected.nan_to_num(-1))
    assert margins[8] == 0, "two tokens tie"
    assert margins[1] == torch.inf, "one token is possible"
    assert margins[0].isnan() and margins[7].isnan()
    assert margins[[2, 4, 6]].tolist() == [77.0] * 3, "padding, and rows of other requests"
    plain = logits[0].float().log_softmax(0).topk(2).values
    assert float(margins[3]) == pytest.approx(float(plain[0] - plain[1]), abs=1e-3)
