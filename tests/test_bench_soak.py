"""The soak: its load is what servers allow, and what it looks for is found."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.soak import ASKED, FREE, REFUSED, SIZES, contradictions
from rheo_sglang.config import RheoConfig
from rheo_sglang.errors import ConfigError
from rheo_sglang.request_settings import read_settings


def counters(**changed: int) -> dict[str, Any]:
    found = dict.fromkeys(FREE, 1) | {"frames_total": 10, "pages_total": 10} | changed
    return {"counters": found, "recorder": None}


def test_what_agrees_is_no_contradiction() -> None:
    state = counters()
    assert contradictions(state) == []
    state["recorder"] = {"requests": [{"rid": "a", "hit_rate": None}, {"rid": "b", "hit_rate": 0.5}]}
    assert contradictions(state) == []


@pytest.mark.parametrize(
    "changed", [{"frames_used": 11}, {"pages_allocated": -1}, {"pages_resident": 2, "pages_allocated": 1}]
)
def test_counters_that_cannot_be_are_found(changed: dict[str, int]) -> None:
    assert contradictions(counters(**changed))


def test_a_hit_rate_beyond_one_is_found() -> None:
    state = counters()
    state["recorder"] = {"requests": [{"rid": "a", "hit_rate": 1.5}]}
    assert contradictions(state) == ["request a: hit rate 1.5"]


@pytest.mark.parametrize("name", SIZES)
def test_servers_take_what_is_asked_and_refuse_what_is_to_be_refused(name: str) -> None:
    config = RheoConfig(**SIZES[name].config)
    for settings in ASKED:
        read_settings({"rheo": settings}, config)
    for settings in REFUSED:
        with pytest.raises(ConfigError):
            read_settings({"rheo": settings}, config)
