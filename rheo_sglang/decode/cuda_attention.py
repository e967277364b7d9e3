"""CudaAttention: attention in CUDA C++, one kernel that reads frames and host memory at once and merges both."""

from __future__ import annotations

import torch

from rheo_kernels.cuda import attend, select_resolve, send_queries
from rheo_kernels.cuda.attend import Workspace
from rheo_kernels.cuda.offload import CpuOffload
from rheo_kernels.types import DecodeBatch, RunnersUp, Selected, Tail
from rheo_sglang.decode.attention import Attention


class CudaAttention(Attention[Workspace]):
    """Attention where the GPU, the dtype and the head size allow; see `rheo_kernels.cuda.attend.unsupported`."""

    select_resolve = staticmethod(select_resolve.select_resolve)
    send_queries = staticmethod(send_queries.send_queries)
    lists_runners_up = True

    def workspace(
        self, batch: int, width: int, tail_width: int = 0, device: torch.device | str | None = None
    ) -> Workspace:
        """See `Attention.workspace`."""
        heads = self.heads
        return Workspace.allocate(
            batch * heads.kv_heads,
            heads.group,
            heads.dim,
            self.page_size,
            width,
            self.frames.device,
            tail_width,
            device,
            self.frames.element_size(),
        )

    def fetch(
        self,
        layer: int,
        selected: Selected,
        q: torch.Tensor,
        scale: float,
        workspace: Workspace,
        out: torch.Tensor,
        staged: torch.Tensor,
        tail: Tail | None = None,
    ) -> None:
        """See `Attention.fetch`."""
        self.attend(layer, selected, q, scale, workspace, out, staged, tail=tail)

    def attend(
        self,
        layer: int,
        selected: Selected,
        q: torch.Tensor,
        scale: float,
        workspace: Workspace,
        out: torch.Tensor,
        staged: torch.Tensor | None,
        offload: CpuOffload | None = None,
        cpu_begin: torch.Tensor | None = None,
        runners_up: RunnersUp | None = None,
        tail: Tail | None = None,
    ) -> None:
        """Attend hits and misses, a part of these on the CPU; see `rheo_kernels.cuda.attend.attend_selected`.

        With an ``offload``, the queries have been sent.
        """
        attend.attend_selected(
            q,
            self.frames[layer],
            self.host[layer],
            selected,
            scale,
            self.page_size,
            workspace,
            out,
            staged,
            offload,
            cpu_begin,
            layer,
            runners_up,
            tail,
            self.scales[layer].v,
        )

    def dense(
        self,
        layer: int,
        batch: DecodeBatch,
        q: torch.Tensor,
        scale: float,
        workspace: Workspace,
        out: torch.Tensor,
        page_table: torch.Tensor,
        missed_at: torch.Tensor,
        now: torch.Tensor,
    ) -> None:
        """See `Attention.dense`."""
        attend.attend_dense(
            q,
            self.frames[layer],
            self.host[layer],
            batch.pages,
            batch.seq_lens,
            page_table,
            scale,
            self.page_size,
            workspace,
            out,
            missed_at,
            now,
            self.scales[layer].v,
        )
