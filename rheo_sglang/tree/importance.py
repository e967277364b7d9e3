"""TreeImportance: importance of what the radix tree and running requests hold, by node, request and content hash."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from rheo_sglang import compat
from rheo_sglang.importance.pages import PageImportance
from rheo_sglang.page_lists import page_lists
from rheo_sglang.page_table import PageTable
from rheo_sglang.tree.nodes import node_pages, slot_pages, walk


class Blocks(NamedTuple):
    """Every block of the radix tree, parents before children: a page's tokens and all tokens before them."""

    hashes: npt.NDArray[np.int64]
    """Content hashes, ``[X]``, as SGLang's KV events announce them."""
    positions: npt.NDArray[np.int32]
    """Tokens before each block, ``[X]``."""
    pages: torch.Tensor
    """Logical pages, ``[X]``, int64, on the page table's device."""


class TreeImportance(PageImportance):
    """`CachedImportance` over a page table and SGLang's radix tree.

    Parameters
    ----------
    table
        Page table.
    tree_cache
        SGLang's radix cache; one without a tree (radix cache off) holds no nodes and no blocks.
    page_size
        Tokens per page.

    Notes
    -----
    Hashes are computed once a node, as SGLang does for its events, and kept with it: SGLang divides them when it splits
    the node. Called by the scheduler's thread alone, for the tree is its own.
    """

    def __init__(self, table: PageTable, tree_cache: Any, page_size: int) -> None:
        super().__init__(table)
        self.tree_cache = tree_cache
        self.page_size = page_size
        self._hashes: dict[int, tuple[list[str], npt.NDArray[np.int64]]] = {}

    def of_node(self, node: Any) -> torch.Tensor:
        """Mean importance of a node's pages, a scalar, float32; NaN of a node without slots."""
        return self.mean(node_pages(node, self.page_size))

    def of_request(self, request: Any) -> torch.Tensor:
        """Mean importance of a running request's pages, its tail included: a scalar, float32."""
        rows = self.tree_cache.req_to_token_pool.req_to_token
        slot = torch.tensor([request.req_pool_idx], device=rows.device)
        tokens = compat.tokens_after_pass(request)
        return self.mean(page_lists(rows, slot, tokens, self.page_size)[0])

    def of_blocks(self, hashes: list[int]) -> torch.Tensor:
        """Importance of blocks by their content hashes: ``[X]``, float32, NaN where the tree has no such block."""
        blocks = self.blocks()
        place = {block: index for index, block in enumerate(blocks.hashes.tolist())}
        found = torch.tensor([place.get(block, -1) for block in hashes], dtype=torch.int64)
        values = torch.full((len(hashes),), torch.nan, device=blocks.pages.device)
        known = (found >= 0).nonzero().flatten().to(values.device)
        values[known] = self.of_pages(blocks.pages[found[found >= 0].to(values.device)])
        return values

    def blocks(self) -> Blocks:
        """Every block that the tree holds; waits for nothing."""
        core = getattr(self.tree_cache, "tree_core", None)
        hashes, positions, slots = [], [], []
        kept: dict[int, tuple[list[str], npt.NDArray[np.int64]]] = {}
        ends = {} if core is None else {core.root_node.id: 0}
        for node in () if core is None else walk(core.root_node):
            first = ends[node.parent.id]
            ends[node.id] = first + len(node.key)
            value = compat.full_slots(node)
            kept[node.id] = known = self._node_hashes(core, node)
            if value is None or not len(value):
                continue
            hashes.append(known[1])
            positions.append(np.arange(first, ends[node.id], self.page_size, dtype=np.int32))
            slots.append(value)
        self._hashes = kept
        device = self.table.frame_of.device
        return Blocks(
            np.concatenate(hashes) if hashes else np.empty(0, np.int64),
            np.concatenate(positions) if positions else np.empty(0, np.int32),
            slot_pages(torch.cat(slots), self.page_size)
            if slots
            else torch.empty(0, dtype=torch.int64, device=device),
        )

    def _node_hashes(self, core: Any, node: Any) -> tuple[list[str], npt.NDArray[np.int64]]:
        texts = compat.block_hash_texts(core, node, self.page_size)
        known = self._hashes.get(node.id)
        if known is None or known[0] is not texts:
            return texts, np.array(compat.announced_hashes(core, node, texts), dtype=np.int64)
        return known
