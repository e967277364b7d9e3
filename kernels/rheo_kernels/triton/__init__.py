"""Triton kernels of the decode path: fixed shapes, no allocation where buffers are given, no host sync.

Each kernel computes what its reference in `rheo_kernels.reference` defines. Where several orders or choices
satisfy the reference, the docstring says which one the kernel takes.
"""

from rheo_kernels.triton.admit import admit
from rheo_kernels.triton.allow import allow
from rheo_kernels.triton.append import append, summarise_tails
from rheo_kernels.triton.attend import attend
from rheo_kernels.triton.attend_dense import attend_dense
from rheo_kernels.triton.describe import describe
from rheo_kernels.triton.estimate import estimate, log_shares
from rheo_kernels.triton.fetch import attend_fetch, fetch_splits
from rheo_kernels.triton.fill import fill
from rheo_kernels.triton.importance import update_importance
from rheo_kernels.triton.merge import merge
from rheo_kernels.triton.note_margins import note_margins
from rheo_kernels.triton.offload import offload_misses
from rheo_kernels.triton.page_mass import page_mass
from rheo_kernels.triton.pair_prefixes import pair_prefixes
from rheo_kernels.triton.partial import num_splits
from rheo_kernels.triton.place import place
from rheo_kernels.triton.release import release
from rheo_kernels.triton.score import score
from rheo_kernels.triton.select import select
from rheo_kernels.triton.select_resolve import select_resolve
from rheo_kernels.triton.stage import stage
from rheo_kernels.triton.tail import tail, tail_splits
from rheo_kernels.triton.transfer import load, save
from rheo_kernels.triton.values import gather_misses, value_frames
from rheo_kernels.triton.working_sets import count_working_sets, total_programs
from rheo_kernels.triton.write import write

__all__ = [
    "admit",
    "allow",
    "append",
    "attend",
    "attend_dense",
    "attend_fetch",
    "count_working_sets",
    "describe",
    "estimate",
    "fetch_splits",
    "fill",
    "gather_misses",
    "load",
    "log_shares",
    "merge",
    "note_margins",
    "num_splits",
    "offload_misses",
    "page_mass",
    "pair_prefixes",
    "place",
    "release",
    "save",
    "score",
    "select",
    "select_resolve",
    "stage",
    "summarise_tails",
    "tail",
    "tail_splits",
    "total_programs",
    "update_importance",
    "value_frames",
    "write",
]
