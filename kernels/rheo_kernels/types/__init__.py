"""Types that references and kernels on every device share: what one kernel writes and the next one reads."""

from rheo_kernels.types.admission import Admitted
from rheo_kernels.types.batch import DecodeBatch
from rheo_kernels.types.budgets import Budgets
from rheo_kernels.types.corrections import CORRECTION_STEP, Corrections
from rheo_kernels.types.estimates import Estimates
from rheo_kernels.types.growth import Growth
from rheo_kernels.types.idle_decay import IdleDecay
from rheo_kernels.types.kv_scales import UNSCALED, KVScales
from rheo_kernels.types.partials import Partials
from rheo_kernels.types.prefix_pairs import PrefixPairs
from rheo_kernels.types.selection import HitCounters, ResidencyBonus, RunnersUp, Selected, Stamps
from rheo_kernels.types.tail import Coverage, Tail

__all__ = [
    "CORRECTION_STEP",
    "UNSCALED",
    "Admitted",
    "Budgets",
    "Corrections",
    "Coverage",
    "DecodeBatch",
    "Estimates",
    "Growth",
    "HitCounters",
    "IdleDecay",
    "KVScales",
    "Partials",
    "PrefixPairs",
    "ResidencyBonus",
    "RunnersUp",
    "Selected",
    "Stamps",
    "Tail",
]
