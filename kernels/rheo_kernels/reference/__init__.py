"""torch references: the definition of every kernel, and the kernels of a server without a GPU.

Shape letters used by every kernel and its reference:

====== =====================================================================
``B``  requests in the batch
``H``  KV heads; ``Hq`` query heads; ``G = Hq / H`` the GQA group size
``D``  head dimension
``P``  page size (tokens of one page)
``N``  logical pages (host pages); page 0 is SGLang's padding page
``F``  frames of one layer and KV head
``M``  width of the batch's page lists (pages of its longest request)
``S``  width of the selection (most pages any request and head may select)
``R``  rows of a page's summary, of ``W`` elements each
====== =====================================================================

A *block* is what one page holds in one layer and KV head: ``[2, D * P]``, first K token-inner
(``[D, P]``, so that a dot product over ``D`` needs no horizontal reduction), then V row-major
(``[P, D]``). Frames and host pages share the layout, so moving a page is a plain copy. Blocks are of the *KV dtype*:
the one that attention computes in, or 8 bits (`rheo_kernels.types.KVScales`).
LSE is the natural logarithm everywhere; an empty partial is ``(output 0, LSE -inf)``.
"""

from rheo_kernels.reference.admit import NEVER_EVICT, admit
from rheo_kernels.reference.allow import allow
from rheo_kernels.reference.append import append
from rheo_kernels.reference.attend import attend
from rheo_kernels.reference.attend_dense import attend_dense
from rheo_kernels.reference.blocks import block_keys, block_values
from rheo_kernels.reference.cover import cover
from rheo_kernels.reference.eight_bits import quantise, widen
from rheo_kernels.reference.estimate import estimate, log_shares
from rheo_kernels.reference.favour import favour
from rheo_kernels.reference.fill import fill
from rheo_kernels.reference.gather_misses import gather_misses
from rheo_kernels.reference.importance import rank_normalise, update_importance
from rheo_kernels.reference.merge import merge
from rheo_kernels.reference.note_margins import note_margins
from rheo_kernels.reference.offload import offload_misses
from rheo_kernels.reference.page_mass import page_mass
from rheo_kernels.reference.pair_prefixes import pair_prefixes
from rheo_kernels.reference.place import place
from rheo_kernels.reference.release import release
from rheo_kernels.reference.resolve import resolve
from rheo_kernels.reference.runners_up import runners_up
from rheo_kernels.reference.score import score
from rheo_kernels.reference.select import select
from rheo_kernels.reference.stage import stage
from rheo_kernels.reference.subcentroids import PageEstimate, decode_subcentroids, summarise_subcentroids
from rheo_kernels.reference.tail import tail
from rheo_kernels.reference.transfer import load, save
from rheo_kernels.reference.value_frames import value_frames
from rheo_kernels.reference.working_sets import count_working_sets, stamp_selected
from rheo_kernels.reference.write import write

__all__ = [
    "NEVER_EVICT",
    "PageEstimate",
    "admit",
    "allow",
    "append",
    "attend",
    "attend_dense",
    "block_keys",
    "block_values",
    "count_working_sets",
    "cover",
    "decode_subcentroids",
    "estimate",
    "favour",
    "fill",
    "gather_misses",
    "load",
    "log_shares",
    "merge",
    "note_margins",
    "offload_misses",
    "page_mass",
    "pair_prefixes",
    "place",
    "quantise",
    "rank_normalise",
    "release",
    "resolve",
    "runners_up",
    "save",
    "score",
    "select",
    "stage",
    "stamp_selected",
    "summarise_subcentroids",
    "tail",
    "update_importance",
    "value_frames",
    "widen",
    "write",
]
