"""Prefill: dense attention over prefix and chunk, and what it leaves behind in host pages and metadata."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention

from rheo_kernels.reference import block_keys, block_values, rank_normalise, update_importance, write
from rheo_sglang.budget.controller import BudgetController
from rheo_sglang.config import RheoConfig
from rheo_sglang.page_table import PageTable
from rheo_sglang.residency import Residency

SEED_QUERIES = 16
"""Last tokens of a chunk whose attention seeds the importance of the pages they see."""


class PrefillRequest(NamedTuple):
    """One request's part of a prefill batch.

    Attributes
    ----------
    start, length
        Its tokens' place in the batch.
    prefix
        Tokens before the chunk.
    pages
        Logical pages of prefix and chunk, ``[n]``, int64.
    """

    start: int
    length: int
    prefix: int
    pages: torch.Tensor


class Prefill:
    """Writes a chunk to host pages, attends it densely, seeds importance and offers frames to the best pages.

    Parameters
    ----------
    config
        Settings.
    table
        Page table.
    host, frames
        Both pools' blocks, ``[L, N, H, 2, D * P]`` and ``[L, H, F, 2, D * P]``.
    page_size
        Tokens per page.
    controller
        Says how many pages the request will select once it decodes.
    """

    def __init__(
        self,
        config: RheoConfig,
        table: PageTable,
        host: torch.Tensor,
        frames: torch.Tensor,
        page_size: int,
        controller: BudgetController,
    ) -> None:
        self.config = config
        self.table = table
        self.host = host
        self.page_size = page_size
        self.controller = controller
        self.residency = Residency(table, host, frames)

    def __call__(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        slots: torch.Tensor,
        requests: list[PrefillRequest],
        scale: float,
        out: torch.Tensor,
    ) -> None:
        """Run one layer.

        Parameters
        ----------
        layer
            Layer index within this rank.
        q
            Queries of all chunks, ``[T, Hq, D]``.
        k, v
            Keys and values, ``[T, H, D]``.
        slots
            Slots of the chunks' tokens, ``[T]``, int64.
        requests
            The batch.
        scale
            Softmax scale.
        out
            Attention output, ``[T, Hq, D]``; written.
        """
        write(k, v, slots, self.host[layer], self.table.metadata[layer], self.page_size)
        for request in requests:
            self._attend(layer, q, request, scale, out)

    def _attend(
        self, layer: int, q: torch.Tensor, request: PrefillRequest, scale: float, out: torch.Tensor
    ) -> None:
        total = request.prefix + request.length
        blocks = self.host[layer][request.pages.to(self.host.device)].to(q.device)
        keys = block_keys(blocks, self.page_size).permute(1, 0, 3, 2).flatten(1, 2)[:, :total]
        values = block_values(blocks, self.page_size).permute(1, 0, 2, 3).flatten(1, 2)[:, :total]
        rows = slice(request.start, request.start + request.length)
        queries = q[rows].transpose(0, 1)
        mask = None
        if request.prefix:
            position = torch.arange(total, device=q.device)
            mask = position[None] <= position[request.prefix :, None]
        attended = scaled_dot_product_attention(
            queries[None],
            keys[None].to(q.dtype),
            values[None].to(q.dtype),
            attn_mask=mask,
            is_causal=mask is None,
            scale=scale,
            enable_gqa=queries.shape[0] != keys.shape[0],
        )
        out[rows] = attended[0].transpose(0, 1)
        self._seed(layer, queries[:, -SEED_QUERIES:], keys, request, scale)

    def _seed(
        self, layer: int, queries: torch.Tensor, keys: torch.Tensor, request: PrefillRequest, scale: float
    ) -> None:
        """Rank pages by the attention of the chunk's last tokens, and offer the best full ones frames.

        A page that is not full stays out of the frames: the next chunk would write to its host page alone.
        """
        heads, total, dim = keys.shape
        last = queries.shape[1]
        grouped = queries.float().reshape(heads, -1, last, dim)
        logits = torch.einsum("hgqd,htd->hgqt", grouped, keys.float()) * scale
        position = torch.arange(total, device=keys.device)
        future = position[None] > position[total - last :, None]
        mass = logits.masked_fill_(future, -torch.inf).softmax(3).mean((1, 2))
        count = request.pages.numel()
        mass = torch.nn.functional.pad(mass, (0, count * self.page_size - total))
        scores = mass.view(1, heads, count, self.page_size).sum(3)
        num_pages = torch.tensor([count], dtype=torch.int32, device=keys.device)
        ranks = rank_normalise(scores, num_pages)
        update_importance(
            self.table.importance[layer], ranks, request.pages[None], num_pages, self.config.importance_alpha
        )
        full = total // self.page_size
        offered = min(full, self.controller.width(total))
        best = ranks[0, :, :full].topk(offered, dim=1).indices
        self.residency.admit_seeded(layer, request.pages[best])
