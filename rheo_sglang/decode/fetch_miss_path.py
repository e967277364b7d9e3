"""FetchMissPath: misses are read from host memory by the kernel that attends the hits."""

from __future__ import annotations

from typing import Any

import torch

from rheo_kernels.cuda.load import Candidates
from rheo_kernels.triton import fill
from rheo_kernels.types import Tail
from rheo_sglang.decode.attention import Attention
from rheo_sglang.decode.buffers import SparseBuffers, StagedPages
from rheo_sglang.decode.miss_path import MissPath


class FetchMissPath(MissPath[Attention[Any], torch.Tensor]):
    """Fetched pages are kept on the way, and copied into the frames that they are given.

    Runners-up are loaded while the layers that follow run. A step's own buffers are the places of `StagedPages`.
    """

    route = "fetch"

    def make_buffers(self, batch: int, width: int) -> StagedPages:
        """See `MissPath.make_buffers`."""
        return StagedPages(batch, width, self.residency.frames)

    def start(self, layer: int, step: SparseBuffers[torch.Tensor], q: torch.Tensor, scale: float) -> None:
        """See `MissPath.start`."""
        with self.admission_stream.fork():
            self._admit(layer, step, most=step.path.shape[1])

    def finish(
        self,
        layer: int,
        step: SparseBuffers[torch.Tensor],
        q: torch.Tensor,
        scale: float,
        out: torch.Tensor,
        tail: Tail | None,
    ) -> None:
        """See `MissPath.finish`."""
        selected, staged, runners_up = step.selected[layer], step.path, step.runners_up[layer]
        self.attention.fetch(layer, selected, q, scale, step.workspace, out, staged, tail)
        with self.admission_stream.fork():
            fill(
                staged,
                selected.misses,
                selected.num_hits,
                selected.num_selected,
                self.table.frame_of[layer],
                self.residency.frames[layer],
            )
            if runners_up is not None:
                with self.load_stream.fork():
                    self.residency.load_admitted(layer, Candidates.of_runners_up(runners_up))
