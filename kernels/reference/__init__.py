"""torch references: the definition of every kernel, and the kernels of a server without a GPU."""

from rheo_kernels.reference.admit import NEVER_EVICT, Admitted, admit
from rheo_kernels.reference.append import append
from rheo_kernels.reference.attend import attend
from rheo_kernels.reference.blocks import block_keys, block_values
from rheo_kernels.reference.importance import rank_normalise, update_importance
from rheo_kernels.reference.merge import merge
from rheo_kernels.reference.metadata import METADATA_ROWS
from rheo_kernels.reference.resolve import Resolved, resolve
from rheo_kernels.reference.score import score
from rheo_kernels.reference.select import select
from rheo_kernels.reference.transfer import load, save
from rheo_kernels.reference.write import write

__all__ = [
    "METADATA_ROWS",
    "NEVER_EVICT",
    "Admitted",
    "Resolved",
    "admit",
    "append",
    "attend",
    "block_keys",
    "block_values",
    "load",
    "merge",
    "rank_normalise",
    "resolve",
    "save",
    "score",
    "select",
    "update_importance",
    "write",
]
