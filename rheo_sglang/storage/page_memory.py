"""PageMemory: pages of the host pool and of the page table, read into records and filled from them by threads."""

from __future__ import annotations

import logging

import numpy as np
import torch

from rheo_sglang.pools.kv_pool import RheoKVPool
from rheo_sglang.storage.record import Bytes, RecordFormat
from rheo_sglang.threads import in_words

logger = logging.getLogger(__name__)


class PageMemory:
    """A KV pool's pages as records, without a lock that the scheduler or a forward pass would have to wait for.

    A page that the radix tree holds is not written again until it is freed. So a reader notes the page's *generation*,
    which counts how often it was freed, and what it has read is the page's if the generation is the same afterwards.

    Parameters
    ----------
    pool
        The pool.

    Attributes
    ----------
    generation
        Times that each page was freed, ``[N]``, int32, on the page table's device. The scheduler's thread counts,
        before the page can be handed out again.
    format
        Where a page's parts lie in a record.
    """

    def __init__(self, pool: RheoKVPool) -> None:
        self.pool = pool
        self.table = table = pool.table
        self.device = table.frame_of.device
        self.generation = torch.zeros(table.pages, dtype=torch.int32, device=self.device)
        host = pool.host.view(torch.uint8)
        self._host = host.view(*host.shape[:2], -1).numpy()
        summaries = table.summaries.view(torch.uint8)
        self._summaries = summaries.view(*summaries.shape[:3], -1)
        layers, heads, _, summary_bytes = self._summaries.shape
        self.format = RecordFormat(layers, heads, summary_bytes, self._host.shape[2])

    def free(self, pages: torch.Tensor) -> None:
        """Note that pages were freed, ``[X]``, integer."""
        pages = pages.long()
        self.generation.index_add_(0, pages, torch.ones_like(pages, dtype=torch.int32))

    def generations(self, pages: torch.Tensor) -> torch.Tensor:
        """Generations of pages, ``[X]``, int64, as of now: ``[X]``, a copy that is not waited for."""
        return self.generation[pages]

    def unchanged(self, pages: torch.Tensor, generations: torch.Tensor) -> list[bool]:
        """Which pages were not freed since their generations were read."""
        now = _rows(self.generation, pages).tolist()
        return [one == before for one, before in zip(now, generations.tolist(), strict=True)]

    def importance(self, pages: torch.Tensor) -> float:
        """Mean importance of pages, ``[X]``, int64."""
        return float(_rows(self.table.policy.worth, pages).mean())

    def settle(self) -> None:
        """Wait until the device has done what was launched: host pages are what forward passes made them."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def unsaved(self, pages: torch.Tensor) -> list[bool]:
        """Which pages have tokens in frames that their host pages lack."""
        return [bool(column.any()) for column in _rows(self.table.unsaved, pages).T]

    def read(self, page: int, record: Bytes) -> None:
        """Copy a page into a record, whose header is left alone."""
        index = torch.tensor([page])
        self.format.importance(record)[:] = _rows(self.table.policy.worth, index)[..., 0]
        summaries = self._summaries[:, :, page]
        self.format.summaries(record)[:] = summaries.cpu().numpy()
        self.format.blocks(record)[:] = self._host[:, page]

    def write(self, page: int, record: Bytes) -> None:
        """Copy a record's K and V into a host page, which nobody else uses."""
        self._host[:, page] = self.format.blocks(record)

    def empty_rows(self, count: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Room on the host for restored pages' summaries, ``[L, H, X, R, W]``, and importance, ``[L, H, X]``.

        None where the memory cannot be had, or not be pinned.
        """
        shape = self.table.summaries.shape
        pinned = self.device.type == "cuda"
        kind = self.table.summaries.dtype
        try:
            summaries = torch.empty((*shape[:2], count, *shape[3:]), dtype=kind, pin_memory=pinned)
            return summaries, torch.empty((*shape[:2], count), dtype=torch.float32, pin_memory=pinned)
        except RuntimeError as error:
            logger.warning("rheo: a prefix in storage is not read, for want of memory (%s)", in_words(error))
            return None

    def read_rows(self, record: Bytes, place: int, summaries: torch.Tensor, worth: torch.Tensor) -> None:
        """Copy a record's summaries and importance to one place of `empty_rows`."""
        as_bytes = summaries.view(torch.uint8)
        rows = as_bytes.view(*as_bytes.shape[:3], -1).numpy()
        rows[:, :, place] = self.format.summaries(record)
        worth.numpy()[:, :, place] = self.format.importance(record)


def _rows(tensor: torch.Tensor, pages: torch.Tensor) -> np.ndarray:
    """Entries of pages in the last dimension, on the host.

    Without torch where the tensor is there already: its threads are those of the forward pass.
    """
    if tensor.is_cuda:
        return tensor[..., pages.to(tensor.device)].cpu().numpy()
    return tensor.numpy()[..., pages.cpu().numpy()]
