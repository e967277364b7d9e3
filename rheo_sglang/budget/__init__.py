"""How many pages a request may select in one decode step: budget rules, one file each, and the table of their caps."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from rheo_sglang.budget.base import BUDGETS, BudgetRule
from rheo_sglang.budget.settings import BudgetSettings
from rheo_sglang.budget.table import BudgetTable

for _module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["BUDGETS", "BudgetRule", "BudgetSettings", "BudgetTable"]
