"""The README's table of settings is the one that RheoConfig and its registries give."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rendering.configuration import README, choices, meanings, table
from rendering.marked_page import fill
from rheo_sglang.config import RheoConfig


def test_the_readme_lists_every_setting_as_it_is(tmp_path: Path) -> None:
    page = tmp_path / README.name
    page.write_text(README.read_text())
    fill(page, "settings", table())
    assert page.read_text() == README.read_text(), "run PYTHONPATH=scripts python -m rendering.configuration"


def test_every_setting_says_what_it_means() -> None:
    assert set(meanings()) == {field.name for field in dataclasses.fields(RheoConfig)}


def test_choices_are_those_of_the_package() -> None:
    assert choices("summary") == ("bound", "mean", "subcentroids2", "subcentroids4", "subcentroids8")
    assert choices("budget") == ("fixed", "coverage")
    assert set(choices("policy")) == {"importance", "lfu", "lru", "predicted", "recency", "window"}
    assert choices("recorder") == ("off", "hits", "mass")
    assert choices("sink_pages") == ()
