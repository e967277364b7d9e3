"""Views of the radix tree in terms of logical pages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from rheo_sglang.compat import full_slots
from rheo_sglang.importance.pages import PageImportance


class Prefix(NamedTuple):
    """A cached prefix that no longer one contains: the nodes from below the root to one without cached children."""

    nodes: tuple[Any, ...]
    tokens: int
    shared_tokens: int
    """Leading tokens that another cached prefix begins with too."""


def slot_pages(slots: torch.Tensor, page_size: int) -> torch.Tensor:
    """Logical pages of page-aligned slots: ``[X * P]`` to ``[X]``, int64."""
    return slots[::page_size] // page_size


def node_pages(node: Any, page_size: int) -> torch.Tensor:
    """Logical pages of a radix node, ``[X]``, int64; none of one without slots."""
    slots = full_slots(node)
    return torch.empty(0, dtype=torch.int64) if slots is None else slot_pages(slots, page_size)


def walk(root: Any) -> Iterator[Any]:
    """Every node below ``root``, parents first."""
    pending = list(root.children.values())
    while pending:
        node = pending.pop()
        yield node
        pending.extend(node.children.values())


def cached_prefixes(root: Any, component: Any) -> Iterator[Prefix]:
    """Every cached prefix that no longer one contains, in any order.

    Parameters
    ----------
    root
        Root of SGLang's radix tree.
    component
        Which component's slots count as cached; a node without slots ends its prefix at its parent.
    """
    pending: list[Prefix] = [Prefix((), 0, 0)]
    while pending:
        prefix = pending.pop()
        node = prefix.nodes[-1] if prefix.nodes else root
        cached = [
            (child, len(value))
            for child in node.children.values()
            if (value := child.component_data[component].value) is not None and len(value)
        ]
        if not cached and prefix.nodes:
            yield prefix
        shared = prefix.tokens if len(cached) > 1 else prefix.shared_tokens
        pending += [
            Prefix((*prefix.nodes, child), prefix.tokens + tokens, shared) for child, tokens in cached
        ]


def describe_tree(
    tree_cache: Any, importance: PageImportance, page_size: int, most: int = 10
) -> list[dict[str, Any]]:
    """The longest cached prefixes with their importance and residency.

    Parameters
    ----------
    tree_cache
        SGLang's radix cache; one without a tree (radix cache off) has no prefixes.
    importance
        Importance of the pages that the nodes' slots name.
    page_size
        Tokens per page.
    most
        Prefixes to describe at most, longest first.

    Returns
    -------
    list of dict
        Of each prefix from the root to its last node: ``node`` (SGLang's number of that node), ``nodes`` (how many),
        ``tokens``, ``shared_tokens`` (leading ones that another cached prefix begins with too), ``importance``
        (mean over its pages, layers and KV heads), ``resident`` (share of its (page, layer, KV head) rows that have a
        frame) and ``locked`` (in use by a running request).
    """
    from sglang.srt.mem_cache.unified_cache.components import ComponentType

    core = getattr(tree_cache, "tree_core", None)
    if core is None:
        return []
    longest = sorted(
        cached_prefixes(core.root_node, ComponentType.FULL),
        key=lambda prefix: (-prefix.tokens, prefix.nodes[-1].id),
    )[:most]
    values = []
    for prefix in longest:
        slots = torch.cat([node.component_data[ComponentType.FULL].value for node in prefix.nodes])
        pages = slot_pages(slots, page_size)
        values += [importance.mean(pages), importance.resident(pages).mean()]
    measured = iter(torch.stack(values).tolist() if values else [])
    return [
        {
            "node": prefix.nodes[-1].id,
            "nodes": len(prefix.nodes),
            "tokens": prefix.tokens,
            "shared_tokens": prefix.shared_tokens,
            "importance": float(f"{next(measured):.4g}"),
            "resident": round(next(measured), 4),
            "locked": prefix.nodes[-1].component_data[ComponentType.FULL].lock_ref > 0,
        }
        for prefix in longest
    ]
