"""ImportanceOrder: the order in which the radix tree's nodes are evicted, by importance and recency."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed

from rheo_sglang import compat
from rheo_sglang.importance.pages import PageImportance
from rheo_sglang.tree.nodes import slot_pages, walk

FIXED_POINT = 1 << 32
"""Importance is added up over ranks in these units: whole numbers have one sum, in whatever order they are added."""
REFRESH_STEPS = 64
"""Decode steps after which importance is read anew although every candidate's is known."""


class ImportanceOrder:
    """Values nodes for eviction, the least valuable first: importance times recency.

    A node's importance is the mean over its pages: the sum, divided by the node's size, for what eviction gains grows
    with the size too. Recency is one over the accesses of the tree since the node's own. Of equals, the one that was
    used longest ago is worth least.

    Parameters
    ----------
    importance
        Importance of pages.
    page_size
        Tokens per page.
    group
        Process group of the ranks whose trees must stay equal, for tensors on the CPU; None for one rank.

    Notes
    -----
    A round of eviction reads the device once at most, for all nodes together, and only if it meets a candidate that
    the last reading did not have, or that reading is `REFRESH_STEPS` old. Importance is of each rank's own KV heads, so
    ranks add up theirs, in whole numbers. That is safe because every rank decides by the same things when to read: the
    schedulers of a group see the same requests in the same order, hence make the same trees, take the same steps and
    run out of pages in the same calls, and a walk lists nodes in the order of insertion, which is the same too.
    """

    def __init__(
        self,
        importance: PageImportance,
        page_size: int,
        group: torch.distributed.ProcessGroup | None,
    ) -> None:
        self.importance = importance
        self.page_size = page_size
        self.group = group
        self.reads = 0
        self._known: dict[int, float] = {}
        self._read_at = 0
        self._now = 0

    def begin_round(self, core: Any) -> None:
        """Prepare for one round of eviction from SGLang's tree core."""
        candidates = core.evictable_device_leaves
        self._now = max((node.last_access_time for node in candidates), default=0)
        old = self.importance.table.activity.steps - self._read_at >= REFRESH_STEPS
        if candidates and (old or any(node.id not in self._known for node in candidates)):
            self._read(core.root_node)

    def __call__(self, node: Any) -> tuple[float, int]:
        """What a node is worth: less is evicted first. A node split off since the last reading counts as important."""
        age = max(self._now - node.last_access_time, 0) + 1
        return self._known.get(node.id, 1.0) / age, node.last_access_time

    def _read(self, root: Any) -> None:
        held = [(node.id, slots) for node in walk(root) if (slots := compat.full_slots(node)) is not None]
        pages = slot_pages(torch.cat([slots for _, slots in held]), self.page_size)
        counts = torch.tensor([len(slots) // self.page_size for _, slots in held])
        owner = torch.repeat_interleave(counts).to(pages.device, non_blocking=True)
        total = torch.zeros(len(held), dtype=torch.float32, device=pages.device)
        total.index_add_(0, owner, self.importance.of_held(pages))
        units = (total.cpu().double() / counts * FIXED_POINT).round().long()
        ranks = 1
        if self.group is not None and (ranks := torch.distributed.get_world_size(self.group)) > 1:
            torch.distributed.all_reduce(units, group=self.group)
        values = (units.double() / (FIXED_POINT * ranks)).tolist()
        self._known = {node: value for (node, _), value in zip(held, values, strict=True)}
        self._read_at = self.importance.table.activity.steps
        self.reads += 1
