"""SUMMARIES: page summaries by name."""

from __future__ import annotations

from rheo_kernels.types.summary import PageSummary
from rheo_sglang.registry import Registry

SUMMARIES: Registry[PageSummary] = Registry("summary", PageSummary)
