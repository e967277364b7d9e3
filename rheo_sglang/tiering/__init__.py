"""Tiering policies, one file each: what a resident page is worth, hence which one gives up its frame."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from rheo_sglang.tiering.activity import Activity
from rheo_sglang.tiering.base import POLICIES, SELECTED, PolicyInputs, TieringPolicy

for _module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["POLICIES", "SELECTED", "Activity", "PolicyInputs", "TieringPolicy"]
