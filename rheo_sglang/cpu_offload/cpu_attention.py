"""CpuAttention: buffers and tasks by which the CPU attends a step's misses, without Python in between."""

from __future__ import annotations

import logging
from typing import NamedTuple

import torch

from rheo_kernels.cpu import Task, default_threads
from rheo_kernels.triton import offload_misses
from rheo_kernels.types import Selected
from rheo_kernels.types.offload_words import LINE
from rheo_sglang.cpu_offload.host_function import launch_host_function
from rheo_sglang.errors import ConfigError
from rheo_sglang.threads import in_words

logger = logging.getLogger(__name__)


CORES_OF_A_THREAD = 2
"""The other core is for the scheduler and for SGLang's tokenizers, detokenizer and HTTP server: a thread that loses its
core to one of them has the GPU wait for it."""


def default_cpu_threads() -> int:
    """Threads for the CPU's part: one for every `CORES_OF_A_THREAD` that this rank may use."""
    ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    return max(default_threads() // ranks // CORES_OF_A_THREAD, 1)


class OffloadBuffers(NamedTuple):
    """What the GPU writes and the CPU reads for one layer, ``X`` requests at most.

    Words of `rheo_kernels.types.offload_words` lie aligned to lines, with room for whole ones.

    Every layer has buffers of its own: lines that the CPU read last are in its caches, and each would have to be
    evicted from there before the GPU can write it.
    """

    q: torch.Tensor
    """Queries, ``[X, Hq, D]``, the dtype that attention computes in."""
    entries: torch.Tensor
    """Words for missed pages, ``[X, H, Y]``, int64, ``Y`` a multiple of `LINE`."""
    counts: torch.Tensor
    """Words for the number of each list's pages, ``[X, H]``, int64."""

    @classmethod
    def allocate(
        cls, batch: int, heads: int, group: int, dim: int, width: int, dtype: torch.dtype, pinned: bool
    ) -> OffloadBuffers:
        """Zeroed buffers for lists of up to ``width`` pages."""
        lists, room = batch * heads, -(-width // LINE) * LINE

        def buffer(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, pin_memory=pinned)

        return cls(
            buffer(batch, heads * group, dim, dtype=dtype),
            buffer(batch, heads, room),
            buffer(-(-lists // LINE) * LINE)[:lists].view(batch, heads),
        )


class CpuAttention:
    """Buffers that both sides see, and a task per layer that runs between two kernels of a stream.

    Layers take turns: the partial of one is merged before the next is offloaded.

    Parameters
    ----------
    host
        Host pages, ``[L, N, H, 2, D * P]``.
    batch
        Most requests.
    group
        Query heads of a KV head.
    width
        Most pages that a request and KV head may select.
    page_size
        Tokens per page.
    threads
        Threads of the CPU's part.
    pinned
        Whether a GPU is on the other side.
    query_dtype
        What attention computes in; the KV dtype by default.

    Raises
    ------
    ConfigError
        If the memory cannot be had or pinned; of `task`, if a thread cannot be started.

    Attributes
    ----------
    buffers
        Each layer's `OffloadBuffers`.
    out, lse
        The partial, ``[X, Hq, D]`` and ``[X, Hq]``, float32, natural logarithm; ``X`` is the most requests.
    """

    def __init__(
        self,
        host: torch.Tensor,
        batch: int,
        group: int,
        width: int,
        page_size: int,
        threads: int,
        pinned: bool,
        query_dtype: torch.dtype | None = None,
    ) -> None:
        layers, _, heads, _, block = host.shape
        queries, dim = heads * group, block // page_size
        self.on_stream = pinned
        try:
            self.buffers = [
                OffloadBuffers.allocate(batch, heads, group, dim, width, query_dtype or host.dtype, pinned)
                for _ in range(layers)
            ]
            self.batch = torch.zeros(1, dtype=torch.int32, pin_memory=pinned)
            self.out = torch.zeros((batch, queries, dim), dtype=torch.float32, pin_memory=pinned)
            self.lse = torch.zeros((batch, queries), dtype=torch.float32, pin_memory=pinned)
        except RuntimeError as error:
            raise ConfigError(
                f"rheo: the buffers of CPU attention for {batch} requests could not be had in "
                f"{'pinned memory' if pinned else 'DRAM'} ({in_words(error)}); allowed: a smaller "
                "--max-running-requests, or a higher limit of locked memory"
            ) from None
        self.host = host
        self.page_size = page_size
        self.threads = threads
        self._tasks: dict[tuple[int, float], Task] = {}

    def __call__(
        self,
        layer: int,
        q: torch.Tensor,
        selected: Selected,
        first: torch.Tensor,
        last: torch.Tensor,
        scale: float,
    ) -> None:
        """Attend listed misses of one layer on the CPU; the current stream has the partial when it goes on.

        Parameters
        ----------
        layer
            Layer index.
        q
            Queries, ``[B, Hq, D]``.
        selected
            The step's selection.
        first, last
            Columns of the misses to attend here, ``[B, H]``, int32, contiguous.
        scale
            Softmax scale.
        """
        offload_misses(
            q,
            selected.misses,
            selected.valid,
            first,
            last,
            *self.buffers[layer],
            self.batch,
        )
        task = self.task(layer, scale)
        if self.on_stream:
            launch_host_function(task.function, task.address)
        else:
            task()

    def task(self, layer: int, scale: float) -> Task:
        """The task that attends a layer's misses: the same object every time."""
        key, buffers = (layer, scale), self.buffers[layer]
        if key not in self._tasks:
            try:
                self._tasks[key] = Task(
                    buffers.q,
                    self.host[layer].transpose(0, 1),
                    buffers.entries,
                    buffers.counts,
                    scale,
                    self.page_size,
                    self.out,
                    self.lse,
                    self.batch,
                    threads=self.threads,
                )
            except RuntimeError as error:
                raise ConfigError(f"rheo: {error}") from None
            task = self._tasks[key]
            if len(self._tasks) == 1:
                logger.info("rheo: misses are attended on the CPU: %d threads, %s", task.threads, task.isa)
        return self._tasks[key]
