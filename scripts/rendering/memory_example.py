#!/usr/bin/env python3
"""Write the worked example of docs/memory.md: what pages cost, and how servers divide memory.

PYTHONPATH=scripts python -m rendering.memory_example
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from common.measurement import REPOSITORY
from rendering.marked_page import fill
from rheo_sglang.config import ESTIMATES, RheoConfig
from rheo_sglang.pools.plan import GIB, KVShape, PoolPlan, plan_pools

PAGE = REPOSITORY / "docs" / "memory.md"
KIB = 1 << 10
QWEN3_8B = KVShape(layers=36, kv_heads=8, head_dim=128, dtype=torch.bfloat16, page_size=32)
CODER = KVShape(layers=28, kv_heads=2, head_dim=128, dtype=torch.bfloat16, page_size=32)
SHAPES = {"Qwen3-8B": (QWEN3_8B, 128), "Qwen2.5-Coder-1.5B": (CODER, 32)}
"""Models and the context, in units of 1024 tokens, that they are planned for."""


class Server(NamedTuple):
    """A machine and the settings of one server on it; ``device_gib`` is 0 without a GPU."""

    model: str
    device_gib: int
    dram_gib: int
    settings: dict[str, float]


SERVERS = (
    Server("Qwen3-8B", 48, 200, {}),
    Server("Qwen3-8B", 48, 100, {}),
    Server("Qwen3-8B", 24, 200, {"host_pool_gib": 72.0, "frame_pool_tokens": 65536}),
    Server("Qwen2.5-Coder-1.5B", 8, 64, {}),
    Server("Qwen2.5-Coder-1.5B", 4, 64, {"host_pool_gib": 14.0, "frame_pool_gib": 1.4}),
    Server("Qwen2.5-Coder-1.5B", 0, 16, {}),
)


def bytes_of_pages() -> str:
    """What a token, a page and a context take, model by model."""
    rows = ["| | " + " | ".join(f"{name} at {context}K" for name, (_, context) in SHAPES.items()) + " |"]
    rows.append("|---|" + "---|" * len(SHAPES))
    columns = [column(shape, context * 1024) for shape, context in SHAPES.values()]
    rows += [f"| {what} | " + " | ".join(entry[what] for entry in columns) + " |" for what in columns[0]]
    return "\n".join(rows)


def column(shape: KVShape, tokens: int) -> dict[str, str]:
    """The rows of one model's column."""
    pages = tokens // shape.page_size
    corrections = shape.layers * shape.kv_heads * pages
    return {
        "layers, KV heads, head size": f"{shape.layers}, {shape.kv_heads}, {shape.head_dim}",
        "K and V of a token (`token_bytes`)": f"{shape.token_bytes / KIB:g} KiB",
        f"a page of {shape.page_size} tokens (`page_bytes`), in DRAM": f"{shape.page_bytes / KIB:g} KiB",
        "its summary and page table (`table_bytes`), in HBM": f"{shape.table_bytes(ESTIMATES) / KIB:.1f} KiB",
        "the same with summary `bound`": f"{shape.table_bytes('bound') / KIB:.1f} KiB",
        "one context in host pages": f"{pages * shape.page_bytes / GIB:.3g} GiB",
        "its summaries and page table": f"{pages * shape.table_bytes(ESTIMATES) / GIB:.3g} GiB",
        "its corrections (`make_corrections`), while a request runs": f"{corrections / KIB:.4g} KiB",
        "its staging in prefill (`staging_bytes`)": f"{shape.staging_bytes(tokens) / GIB:.3g} GiB",
    }


def plans() -> str:
    """How the servers divide their memory."""
    rows = [
        "| model | HBM for KV | DRAM | `--rheo-config` | staging | host pool | contexts | table | frames |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for server in SERVERS:
        shape, context = SHAPES[server.model]
        staging = shape.staging_bytes(context * 1024) if server.device_gib else 0
        plan = plan_pools(
            RheoConfig(**server.settings),  # type: ignore[arg-type]
            shape,
            device_bytes=server.device_gib * GIB - staging,
            dram_bytes=server.dram_gib * GIB,
            max_total_tokens=None,
            frames_in_dram=not server.device_gib,
        )
        rows.append(row(server, shape, context, staging, plan))
    return "\n".join(rows)


def row(server: Server, shape: KVShape, context: int, staging: int, plan: PoolPlan) -> str:
    """One server's row."""
    settings = ", ".join(f"`{name}` {value:g}" for name, value in server.settings.items()) or "none"
    contexts = plan.host_pages * shape.page_size / (context * 1024)
    frame_tokens = plan.frame_pages * shape.page_size
    cells = (
        f"{server.model}, {context}K",
        f"{server.device_gib} GiB" if server.device_gib else "none: `--device cpu`",
        f"{server.dram_gib} GiB",
        settings,
        f"{staging / GIB:.2f} GiB" if staging else "0",
        f"{plan.host_pages * shape.page_bytes / GIB:.1f} GiB",
        f"{contexts:.1f}",
        f"{plan.host_pages * shape.table_bytes(ESTIMATES) / GIB:.2f} GiB",
        f"{plan.frame_pages * shape.page_bytes / GIB:.2f} GiB, {frame_tokens:,} tokens",
    )
    return "| " + " | ".join(cells) + " |"


def example() -> str:
    """Both tables."""
    return f"{bytes_of_pages()}\n\n{plans()}"


if __name__ == "__main__":
    fill(PAGE, "memory", example())
