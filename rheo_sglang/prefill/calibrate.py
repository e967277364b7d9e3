"""Calibration: a prompt's last tokens tell by how much each of its pages is estimated wrong."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from rheo_kernels import reference
from rheo_kernels.types import CORRECTION_STEP
from rheo_kernels.types.summary import EstimatingSummary
from rheo_sglang.page_table import PageTable
from rheo_sglang.prefill.batch import PrefillBatch
from rheo_sglang.prefill.seed import SEED_QUERIES

MOST = 3.0
"""Nats of a correction."""
LEAST_SHARE = 1e-9
"""Shares below it are as good as none: neither what draws it nor how wrong its estimate is matters."""
AT_ONCE = 4
"""Requests whose pages are estimated together: their estimates are short-lived, but for every query."""


def make_corrections(
    layers: int, requests: int, kv_heads: int, max_pages: int, device: torch.device | str
) -> torch.Tensor:
    """Of all layers and rows of the token table, see `rheo_kernels.types.Corrections`: none yet.

    Parameters
    ----------
    layers, kv_heads
        ``L`` and ``H`` of this rank.
    requests
        That may run, ``R - 1``: the token table has a row more, which pads batches.
    max_pages
        Of the longest request.
    device
        Where pages are scored.

    Returns
    -------
    torch.Tensor
        ``[L, R, H, M]``, int8.
    """
    return torch.zeros((layers, requests + 1, kv_heads, max_pages), dtype=torch.int8, device=device)


class _Ending(NamedTuple):
    """Requests whose prompts end in a pass, ``n`` of them, every one as `SEED_QUERIES` rows; ``N`` rows in all."""

    rows: torch.Tensor
    """Of the token table, ``[n]``, int64."""
    queries: torch.Tensor
    """Which of the pass's tokens ask, ``[N]``, int64: the last ones, the first of a short chunk several times."""
    pages: torch.Tensor
    """``[N, M]``, int32."""
    lengths: torch.Tensor
    """Tokens, ``[N]``, int32."""
    num_pages: torch.Tensor
    """``[n]``, int32."""
    first: int
    """Of the requests, its place in the pass."""


class Calibration:
    """Compares what a prompt's last tokens attend with what summaries estimate of it.

    A page's estimate is off by much the same for queries that follow each other, since its rows are means of the same
    tokens. The correction is the logarithm of the page's share of the attention of the prompt's last `SEED_QUERIES`
    tokens over the estimated share, up to `MOST` nats to either side; pages that are written later have none.

    Parameters
    ----------
    table
        Page table.
    codes
        Of `rheo_kernels.types.Corrections` for all layers, ``[L, R, H, M]``, int8; written.
    page_size, head_dim
        Of the pages.
    """

    def __init__(self, table: PageTable, codes: torch.Tensor, page_size: int, head_dim: int) -> None:
        assert isinstance(table.summary, EstimatingSummary)
        self.table = table
        self.codes = codes
        self.layout = table.summary.layout(head_dim, page_size)
        self.ending: list[_Ending] = []

    def begin(self, rows: torch.Tensor, batch: PrefillBatch) -> None:
        """Begin a pass of requests with these rows of the token table, ``[B]``."""
        self.ending = []
        back = torch.arange(SEED_QUERIES, device=rows.device)
        tokens = batch.cu_keys.diff()
        for first in range(0, batch.ending, AT_ONCE):
            some = slice(first, min(first + AT_ONCE, batch.ending))
            begins, ends = batch.cu_queries[:-1][some], batch.cu_queries[1:][some]
            queries = (ends[:, None] - 1 - back).maximum(begins[:, None])
            self.ending.append(
                _Ending(
                    rows[some].long(),
                    queries.flatten().long(),
                    batch.pages[some].repeat_interleave(SEED_QUERIES, 0),
                    tokens[some].repeat_interleave(SEED_QUERIES),
                    batch.num_pages[some],
                    first,
                )
            )

    def __call__(self, layer: int, q: torch.Tensor, mass: torch.Tensor, scale: float) -> None:
        """Write the corrections of one layer, once its pages are summarised.

        Parameters
        ----------
        layer
            Layer index.
        q
            Queries of all chunks, ``[T, Hq, D]``.
        mass
            What the prompts' last tokens attend of each page, ``[E, H, M]``, float32.
        scale
            Softmax scale.
        """
        codes = self.codes[layer]
        for one in self.ending:
            estimated = self._shares(layer, q[one.queries], one, scale).unflatten(0, (-1, SEED_QUERIES))
            mean = estimated.logsumexp(1) - math.log(SEED_QUERIES)
            true = mass[one.first : one.first + len(one.rows)].clamp(min=LEAST_SHARE).log()
            wrong = (true - mean.clamp(min=math.log(LEAST_SHARE))).clamp(-MOST, MOST)
            place = torch.arange(wrong.shape[2], device=wrong.device)
            wrong.masked_fill_(place >= one.num_pages[:, None, None], 0.0)
            written = codes.new_zeros((len(one.rows), *codes.shape[1:]))
            width = min(wrong.shape[2], codes.shape[2])
            written[:, :, :width] = (wrong[:, :, :width] / CORRECTION_STEP).round().to(torch.int8)
            codes.index_copy_(0, one.rows, written)

    def _shares(self, layer: int, q: torch.Tensor, one: _Ending, scale: float) -> torch.Tensor:
        """Logarithms of estimated shares, ``[N, H, M]``, float32."""
        summaries = self.table.summaries[layer, :, :, 0]
        given = q, summaries, one.pages, one.lengths, scale, self.layout
        if q.device.type == "cpu":
            counts = one.num_pages.repeat_interleave(SEED_QUERIES)
            return reference.log_shares(reference.estimate(*given), counts, len(summaries))
        from rheo_kernels import triton

        out = torch.empty((len(q), len(summaries), one.pages.shape[1]), device=q.device)
        return triton.log_shares(triton.estimate(*given), one.lengths, self.layout.page_size, out)
