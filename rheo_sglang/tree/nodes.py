"""Views of radix-tree nodes as logical pages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from rheo_sglang.page_table import PageTable


def slot_pages(slots: torch.Tensor, page_size: int) -> torch.Tensor:
    """Logical pages of page-aligned slots: ``[X * P]`` to ``[X]``, int64."""
    return slots[::page_size] // page_size


def walk(root: Any) -> Iterator[Any]:
    """Every node below ``root``, parents first."""
    pending = list(root.children.values())
    while pending:
        node = pending.pop()
        yield node
        pending.extend(node.children.values())


def describe_tree(tree_cache: Any, table: PageTable, page_size: int, most: int = 10) -> list[dict[str, Any]]:
    """The longest cached prefixes with their importance and residency.

    Parameters
    ----------
    tree_cache
        SGLang's radix cache; one without a tree (radix cache off) has no prefixes.
    table
        The page table that the nodes' slots name pages of.
    page_size
        Tokens per page.
    most
        Nodes to describe at most, longest first.

    Returns
    -------
    list of dict
        ``tokens``, ``importance`` (mean over the node's pages, layers and KV heads), ``resident`` (share of its
        rows that have a frame) and ``locked`` (in use by a running request) of each node.
    """
    from sglang.srt.mem_cache.unified_cache.components import ComponentType

    core = getattr(tree_cache, "tree_core", None)
    if core is None:
        return []
    nodes = []
    for node in walk(core.root_node):
        data = node.component_data[ComponentType.FULL]
        if data.value is not None and len(data.value):
            nodes.append((len(data.value), data))
    nodes.sort(key=lambda entry: -entry[0])
    described = []
    for tokens, data in nodes[:most]:
        pages = slot_pages(data.value, page_size)
        described.append(
            {
                "tokens": tokens,
                "importance": round(float(table.node_worth(pages)), 4),
                "resident": round(float(table.resident_share(pages)), 4),
                "locked": data.lock_ref > 0,
            }
        )
    return described
