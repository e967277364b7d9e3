"""What goes into the importance of pages and what may be read of it: the types behind docs/importance.md."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch


@runtime_checkable
class ImportanceInput(Protocol):
    """What is told of prompts and steps; every `rheo_sglang.tiering.TieringPolicy` takes it.

    Shapes and dtypes are those of `TieringPolicy`. Calls have fixed shapes and never wait for the device.
    """

    def on_prefill(
        self,
        layer: int,
        mass: torch.Tensor,
        pages: torch.Tensor,
        num_pages: torch.Tensor,
        caps: torch.Tensor,
    ) -> None:
        """Learn what the last tokens of ended prompts attended in one layer."""
        ...

    def on_step(
        self, layer: int, scores: torch.Tensor, selected: Any, pages: torch.Tensor, num_pages: torch.Tensor
    ) -> None:
        """Learn one decode step's scores and selection in one layer."""
        ...

    def release(self, pages: torch.Tensor) -> None:
        """Forget freed pages, ``[X]``, int64."""
        ...

    def fold(self, duplicates: torch.Tensor, survivors: torch.Tensor) -> None:
        """Merge duplicates into the pages that survive them, both ``[X]``, int64."""
        ...


@runtime_checkable
class BlockImportance(Protocol):
    """Importance of logical pages: 0 = nothing is known or nobody needs it, 1 = ranked first wherever it was seen.

    All numbers are float32 in [0, 1], as the last forward pass left them. Tensors stay on the page table's device and
    are not waited for; `get_importance` waits.
    """

    def get_importance(self, page_id: int) -> float:
        """Importance of one page: the mean over its rows (layers and KV heads)."""
        ...

    def of_pages(self, pages: torch.Tensor) -> torch.Tensor:
        """Importance of pages, ``[X]``, integer, to ``[X]``."""
        ...

    def of_rows(self, pages: torch.Tensor) -> torch.Tensor:
        """Importance of pages in every layer and KV head, ``[L, H, X]``."""
        ...

    def mean(self, pages: torch.Tensor) -> torch.Tensor:
        """Mean importance of the pages of a radix node, a prefix or a request, a scalar; NaN of no pages."""
        ...


@runtime_checkable
class CachedImportance(BlockImportance, Protocol):
    """Importance of what the radix tree and the running requests hold."""

    def of_node(self, node: Any) -> torch.Tensor:
        """Mean importance of a radix node's pages, a scalar."""
        ...

    def of_request(self, request: Any) -> torch.Tensor:
        """Mean importance of a running request's pages, a scalar."""
        ...

    def of_blocks(self, hashes: list[int]) -> torch.Tensor:
        """Importance by the content hash of SGLang's KV events, ``[X]``; NaN where the tree has no such block."""
        ...
