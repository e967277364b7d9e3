"""Triton kernels of the decode path: fixed shapes, no allocation where buffers are given, no host sync.

Each kernel computes what its reference in `rheo_kernels.reference` defines. Where several orders or choices
satisfy the reference, the docstring says which one the kernel takes.
"""

from rheo_kernels.triton.admit import Admitted, admit
from rheo_kernels.triton.append import append
from rheo_kernels.triton.attend import attend
from rheo_kernels.triton.fetch import attend_fetch
from rheo_kernels.triton.importance import update_importance
from rheo_kernels.triton.merge import merge
from rheo_kernels.triton.partial import Workspace, num_splits
from rheo_kernels.triton.resolve import resolve
from rheo_kernels.triton.score import score
from rheo_kernels.triton.select import select
from rheo_kernels.triton.select_resolve import HitCounters, Selected, select_resolve
from rheo_kernels.triton.transfer import load, save
from rheo_kernels.triton.values import Fade, gather_misses, value_frames

__all__ = [
    "Admitted",
    "Fade",
    "HitCounters",
    "Selected",
    "Workspace",
    "admit",
    "append",
    "attend",
    "attend_fetch",
    "gather_misses",
    "load",
    "merge",
    "num_splits",
    "resolve",
    "save",
    "score",
    "select",
    "select_resolve",
    "update_importance",
    "value_frames",
]
