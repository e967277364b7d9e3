"""Seeding: the tiering policy learns what a prompt's last tokens attend, and full pages are offered frames."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Protocol

import torch

from rheo_kernels.types import IdleDecay
from rheo_sglang.page_table import PageTable
from rheo_sglang.prefill.batch import PrefillBatch

if TYPE_CHECKING:
    from rheo_sglang.traces import Tracer

SEED_QUERIES = 16
"""Last tokens of a prompt whose attention the tiering policy learns of."""


class SeedAdmission(Protocol):
    """What seeding needs of residency."""

    def admit_seeded(
        self,
        layer: int,
        pages: torch.Tensor,
        decay: IdleDecay | None,
        keys: torch.Tensor,
        values: torch.Tensor,
        rows: torch.Tensor,
    ) -> None:
        """Offer frames to pages, ``[X]``, int64, 0 = none, for their worth; that of resident pages decays.

        ``keys`` and ``values``, ``[Y, H, D]``, hold their tokens from ``rows`` on, ``[X]``, int32, as host pages do.
        """
        ...


class Seeding:
    """Worth and residency that a prompt leaves behind.

    Parameters
    ----------
    kernels
        Module of the kernels for the page table's device.
    table
        Page table.
    residency
        Gives pages frames.
    page_size
        Tokens per page.
    tracer
        Records what prompts attended, or None.
    """

    def __init__(
        self,
        kernels: ModuleType,
        table: PageTable,
        residency: SeedAdmission,
        page_size: int,
        tracer: Tracer | None = None,
    ) -> None:
        self.kernels = kernels
        self.table = table
        self.residency = residency
        self.page_size = page_size
        self.tracer = tracer
        self.caps = torch.empty(0, dtype=torch.int32)
        self.decay: IdleDecay | None = None

    def begin(self, batch: PrefillBatch, caps: torch.Tensor) -> None:
        """Begin a pass: how many pages a decode step of each request may select, ``[B]``, holds for all layers."""
        self.caps = caps[: batch.ending]
        self.decay = self.table.policy.prompt_decay(batch.pages, batch.num_pages)

    def page_mass(
        self, q: torch.Tensor, keys: torch.Tensor, batch: PrefillBatch, scale: float
    ) -> torch.Tensor | None:
        """Attention of each ending prompt's last tokens to each page; None if no prompt ends in this pass.

        Parameters
        ----------
        q
            Queries of all chunks, ``[T, Hq, D]``.
        keys
            Keys of all prefixes and chunks, ``[Y, H, D]``.
        batch
            The pass.
        scale
            Softmax scale.

        Returns
        -------
        torch.Tensor or None
            ``[E, H, M]``, float32, ``-inf`` past the last page.
        """
        if batch.ending == 0:
            return None
        ends = batch.ending + 1
        return self.kernels.page_mass(
            q,
            keys,
            batch.cu_queries[:ends],
            batch.cu_keys[:ends],
            scale,
            self.page_size,
            SEED_QUERIES,
            batch.pages.shape[1],
        )

    def __call__(
        self,
        layer: int,
        mass: torch.Tensor | None,
        keys: torch.Tensor,
        values: torch.Tensor,
        batch: PrefillBatch,
    ) -> None:
        """Tell the policy, and offer the prompts' full pages frames: the best get them, or all that fit.

        A page that is not full stays out of the frames: the next chunk would write to its host page alone.

        Parameters
        ----------
        layer
            Layer index.
        mass
            See `page_mass`.
        keys, values
            Keys and values of all prefixes and chunks, ``[Y, H, D]``.
        batch
            The pass.
        """
        if self.tracer is not None:
            self.tracer.prompts(mass, batch, self.caps)
        if mass is None:
            return
        pages, num_pages = batch.pages[: batch.ending], batch.num_pages[: batch.ending]
        self.table.policy.on_prefill(layer, mass, pages, num_pages, self.caps)
        if batch.offered.numel():
            self.residency.admit_seeded(layer, batch.offered, self.decay, keys, values, batch.offered_rows)
