"""Extensions take part in every contract test: the documentation's examples, and those of ``RHEO_CONFIG``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rheo_sglang.config import RheoConfig

EXAMPLES = sorted(path.stem for path in (Path(__file__).parents[2] / "docs" / "examples").glob("*.py"))

with pytest.MonkeyPatch.context() as patch:
    if not torch.cuda.is_available():
        patch.setenv("TRITON_INTERPRET", "1")
    RheoConfig(extensions=(*EXAMPLES, *RheoConfig.from_environment().extensions))
