"""Which pages a request attends in one decode step: page summaries, one file each, and what selects by them."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from rheo_kernels.types.summary import EstimatingSummary, PageSummary, ScoringSummary, SummaryKernels
from rheo_sglang.selection.base import SUMMARIES

for _module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["SUMMARIES", "EstimatingSummary", "PageSummary", "ScoringSummary", "SummaryKernels"]
