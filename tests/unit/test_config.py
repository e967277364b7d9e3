"""Settings come from text, file or environment; a bad one is one sentence: name, value, what is allowed."""

from __future__ import annotations

import dataclasses
import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from rheo_sglang.config import DENSE_TOKENS, ENVIRONMENT, EVERY_LENGTH, RheoConfig
from rheo_sglang.errors import FLAG, ConfigError

GOOD = {
    "budget_ratio": 0.25,
    "budget_min_pages": 4,
    "budget_max_pages": 4,
    "sink_pages": 0,
    "window_pages": 1,
    "dense_threshold": 0,
    "summary": "mean",
    "grouping": "max",
    "importance_alpha": 1.0,
    "prewarm": 0.5,
    "policy": "lfu",
    "calibrate": True,
    "residency_bonus": 0.5,
    "miss_mode": "fetch",
    "host_pool_gib": 2.0,
    "frame_pool_tokens": 4096,
    "working_set_steps": 16,
    "admission": "working_set",
    "admission_overcommit": 2.0,
    "thrash_hit_rate": 0.25,
    "thrash_budget": 0.75,
    "recorder": "mass",
}

BAD: list[tuple[dict[str, Any], str]] = [
    *(({"budget_ratio": value}, "above 0, at most 1") for value in (0, -0.1, 1.01)),
    *(({"budget_ratio": value}, "a finite number") for value in ("0.1", None, True, [0.1], float("nan"))),
    ({"budget_min_pages": 0}, "at least 1"),
    *(
        ({name: 10**20}, "at most 2147483647")
        for name in ("budget_min_pages", "budget_max_pages", "sink_pages", "window_pages")
    ),
    *(({"budget_min_pages": value}, "a whole number") for value in (1.5, "16", None, False)),
    ({"budget_max_pages": 63}, "at least budget_min_pages=64"),
    ({"budget_max_pages": 20.0}, "a whole number"),
    *(({"budget_coverage": value}, "above 0, at most 1") for value in (0, 1.5)),
    *(({"budget_limit_ratio": value}, "above 0, at most 1") for value in (0, 2)),
    *(({"conservative": value}, "above 0, at most 1") for value in (0, -0.5, 1.01)),
    *(({"conservative": value}, "off, on, a number") for value in ("auto", True, None, [0.5])),
    ({"conservative_margin": -0.1}, "at least 0"),
    ({"conservative_margin": "on"}, "a finite number"),
    ({"plan_decode_buffers": 1}, "true, false"),
    ({"sink_pages": -1}, "at least 0"),
    ({"window_pages": 0}, "at least 1"),
    ({"dense_threshold": -1}, "at least 0"),
    ({"summary": "quest"}, "bound, mean"),
    ({"summary": ["bound"]}, "bound, mean"),
    *(({"extensions": value}, "a list of importable modules") for value in ("json", None, [3])),
    ({"extensions": ["no_such_module"]}, "modules that can be imported"),
    ({"grouping": "sum"}, "mean, max"),
    ({"summary": "subcentroids4", "grouping": "max"}, "mean, or summary bound or mean"),
    *(({"tail": value}, "true, false") for value in ("yes", 1, None)),
    *(({"importance_alpha": value}, "above 0, at most 1") for value in (0, 1.5)),
    *(({"prewarm": value}, "above 0, at most 1") for value in (0, 1.5)),
    *(({"prewarm": value}, "auto, off, on, a number") for value in (True, "1", None)),
    ({"tree_eviction": "lru"}, "sglang, importance"),
    ({"importance_file": 3}, "text that is not empty"),
    *(({"importance_file": value}, "a file in a folder") for value in ("/no/such/folder/file", "/")),
    *(({"importance_interval": value}, "above 0") for value in (0, -1)),
    ({"calibrate": "yes"}, "true, false"),
    *(({"residency_bonus": value}, "at least 0") for value in (-0.1, -1)),
    ({"residency_bonus": "1"}, "a finite number"),
    ({"policy": "random"}, "importance, lfu, lru"),
    ({"policy": ["lru"]}, "importance, lfu, lru"),
    ({"miss_mode": "never"}, "auto, split, fetch"),
    *(({"host_pool_gib": value}, "above 0") for value in (0, -1)),
    *(({"host_pool_gib": value}, "a finite number") for value in (float("inf"), 10**400)),
    ({"host_pool_gib": "8 GiB"}, "a finite number"),
    *(({"host_pool_ratio": value}, "above 0") for value in (0, -1)),
    *(({"host_pool_ratio": value}, "a finite number") for value in (float("inf"), 10**400)),
    ({"host_pool_ratio": 0.5}, "at least 1"),
    ({"frame_pool_gib": 0}, "above 0"),
    ({"frame_pool_gib": float("inf")}, "a finite number"),
    ({"frame_pool_tokens": 0}, "above 0"),
    ({"frame_pool_tokens": 0.5}, "a whole number"),
    ({"host_pool_gib": 1, "host_pool_ratio": 2}, "not both"),
    ({"frame_pool_gib": 1, "frame_pool_tokens": 64}, "not both"),
    ({"host_pool_gib": 1, "frame_pool_gib": 2}, "at least frame_pool_gib=2.0"),
    ({"cpu_threads": 0}, "at least 1, at most 256"),
    *(({"request_budget_ratio": value}, "at least 0.04, at most 1") for value in (0, 0.03, 1.1)),
    ({"request_budget_ratio": "0.1"}, "a finite number"),
    ({"request_budget_min_pages": 8}, "at least 64"),
    ({"request_budget_min_pages": 65.5}, "a whole number"),
    *(({"request_limit_ratio": value}, "above 0, at most 1") for value in (0, -0.5, 1.1)),
    ({"request_limit_ratio": "0.5"}, "a finite number"),
    ({"request_limit_ratio": 0.2, "budget": "coverage"}, "at least 0.25, at most 1"),
    ({"request_limit_ratio": 0.9, "conservative": "on"}, "at least 1.0, at most 1"),
    ({"working_set_steps": 0}, "at least 1"),
    *(({"admission": value}, "off, working_set") for value in (True, "on", None)),
    *(({"admission_overcommit": value}, "above 0") for value in (0, -1.5)),
    *(({"thrash_hit_rate": value}, "at least 0, at most 1") for value in (-0.1, 1.1)),
    *(({"thrash_budget": value}, "above 0, at most 1") for value in (0, 1.1)),
    ({"working_set_steps": 1.5}, "a whole number"),
    ({"recorder": "on"}, "off, hits, mass"),
    ({"recorder": False}, "off, hits, mass"),
    ({"trace": ""}, "text that is not empty"),
    ({"trace": 3}, "text that is not empty"),
    ({"trace_gib": 0}, "above 0"),
    *(({"budget": value}, "fixed, coverage") for value in (0.1, "share", None)),
    ({"budgets": 0.1}, "budget_ratio, budget_min_pages"),
    ({"Budget_ratio": 0.1}, "budget_ratio, budget_min_pages"),
]


def assert_one_sentence(message: str, source: str, value: str, allowed: str) -> None:
    assert message.startswith(f"{source}: ")
    assert value in message
    assert allowed in message
    assert "\n" not in message


@pytest.mark.parametrize(("values", "allowed"), BAD, ids=[json.dumps(values)[:40] for values, _ in BAD])
def test_a_bad_value_is_one_sentence_with_key_value_and_what_is_allowed(
    values: dict[str, Any], allowed: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        RheoConfig.parse(json.dumps(values))
    message = str(caught.value)
    shown = [
        f"{name}={number!r}"
        for key, value in values.items()
        for name in (key, repr(key))
        for number in ([value, float(value)] if isinstance(value, int) and value < 10**9 else [value])
    ]
    assert any(pair in message for pair in shown), f"the sentence names neither key nor value: {message}"
    assert_one_sentence(message, FLAG, "", allowed)


def test_every_setting_is_covered_by_a_bad_value() -> None:
    assert {key for values, _ in BAD for key in values} >= {
        field.name for field in dataclasses.fields(RheoConfig)
    }


def test_a_typed_constructor_rejects_the_same_values() -> None:
    with pytest.raises(ConfigError, match=r"window_pages=0 .* at least 1"):
        RheoConfig(window_pages=0)


def test_good_values_at_the_edges_of_their_ranges_are_kept() -> None:
    config = RheoConfig.parse(json.dumps(GOOD))
    assert {key: getattr(config, key) for key in GOOD} == GOOD


def test_whole_numbers_are_numbers() -> None:
    config = RheoConfig(budget_ratio=1, host_pool_gib=3)
    assert (config.budget_ratio, config.host_pool_gib) == (1.0, 3.0)
    assert isinstance(config.budget_ratio, float)


@pytest.mark.parametrize("values", [{}, GOOD, {"host_pool_ratio": 1}, {"extensions": ["json"]}])
def test_json_round_trip(values: dict[str, Any]) -> None:
    config = RheoConfig(**values)
    assert RheoConfig.parse(config.to_json()) == config


def test_a_config_is_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "rheo.json"
    file.write_text("\n " + json.dumps(GOOD))
    assert RheoConfig.parse(str(file)) == RheoConfig(**GOOD)


def test_a_config_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "rheo.json"
    file.write_text('{"policy": "lru"}')
    for text in (str(file), ' {"policy": "lru"} '):
        monkeypatch.setenv(ENVIRONMENT, text)
        assert RheoConfig.from_environment() == RheoConfig(policy="lru")


@pytest.mark.parametrize("text", [None, "", "  "])
def test_an_empty_environment_means_the_defaults(monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    if text is not None:
        monkeypatch.setenv(ENVIRONMENT, text)
    assert RheoConfig.from_environment() == RheoConfig()


@pytest.mark.parametrize(
    ("text", "value", "allowed"),
    [
        ('{"polcy": "lru"}', "'polcy'='lru'", "policy"),
        ('{"budget_ratio": 2}', "budget_ratio=2.0", "at most 1"),
        ('{"policy": "mru"}', "policy='mru'", "lru"),
        ('{"host_pool_gib": 1, "host_pool_ratio": 2}', "host_pool_ratio=2.0", "not both"),
        ('{"policy": "lru", "policy": "lfu"}', "'policy'", "once"),
        ("{policy", "{policy", "not valid JSON"),
        ("no/such/file", "no/such/file", "neither a JSON object nor a readable file"),
    ],
)
def test_a_bad_environment_is_blamed_on_the_environment(
    monkeypatch: pytest.MonkeyPatch, text: str, value: str, allowed: str
) -> None:
    monkeypatch.setenv(ENVIRONMENT, text)
    with pytest.raises(ConfigError) as caught:
        RheoConfig.from_environment()
    assert_one_sentence(str(caught.value), ENVIRONMENT, value, allowed)
    assert FLAG not in str(caught.value)


@pytest.mark.parametrize("second", ['"lru"', '"lfu"', "null"])
def test_a_key_that_is_given_twice_is_an_error_even_with_the_same_value(second: str) -> None:
    with pytest.raises(ConfigError, match=r"^--rheo-config: key 'policy' is given twice; allowed: once$"):
        RheoConfig.parse(f'{{"policy": "lru", "sink_pages": 1, "policy": {second}}}')


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("no/such/file.json", "neither a JSON object nor a readable file (No such file or directory)"),
        ("", "is empty; allowed: a JSON object, or a file that holds one"),
        ("[1, 2]", "is not a JSON object; allowed: an object of settings"),
        ('"lru"', "is not a JSON object; allowed: an object of settings"),
        ("{budget_ratio: 0.1}", "not valid JSON"),
        ('{"budget_ratio": 0.1', "not valid JSON"),
        ('{"host_pool_gib": ' + 5000 * "9" + "}", "not valid JSON"),
        ('{"a": ' + 100_000 * "[", "not valid JSON"),
        ("x" * 5000, "neither a JSON object nor a readable file (File name too long)"),
    ],
)
def test_text_that_is_no_object_and_no_file_is_one_sentence(text: str, allowed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RheoConfig.parse(text)
    assert_one_sentence(str(caught.value), FLAG, repr(text), allowed)


@pytest.mark.parametrize(
    ("content", "allowed"),
    [
        (b"[]", "not a JSON object"),
        (b"policy = lru", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"\x89PNG\r\n\x1a\n\xff", "neither a JSON object nor a readable file"),
    ],
    ids=["list", "other format", "empty", "binary"],
)
def test_a_file_that_holds_no_object_is_one_sentence(tmp_path: Path, content: bytes, allowed: str) -> None:
    file = tmp_path / "rheo.json"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        RheoConfig.parse(str(file))
    assert_one_sentence(str(caught.value), FLAG, "", allowed)


def test_a_directory_is_not_a_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Is a directory"):
        RheoConfig.parse(str(tmp_path))


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RheoConfig().policy = "lru"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "tokens"),
    [
        ({}, DENSE_TOKENS),
        ({"budget_ratio": 1}, EVERY_LENGTH),
        ({"budget_ratio": 1, "budget_max_pages": 100}, DENSE_TOKENS),
        ({"budget_ratio": 0.99}, DENSE_TOKENS),
        ({"dense_threshold": 0}, 0),
        ({"budget_ratio": 0.1, "dense_threshold": 100}, 100),
    ],
)
def test_requests_skip_selection_up_to_a_length_or_always_where_all_pages_are_selected(
    values: dict[str, Any], tokens: int
) -> None:
    assert RheoConfig(**values).dense_tokens == tokens


def test_the_default_summary_estimates_where_it_serves_the_head_size() -> None:
    assert RheoConfig().page_summary(128, 32, torch.bfloat16) == "subcentroids4"
    assert RheoConfig().page_summary(96, 32, torch.bfloat16) == "bound"
    assert RheoConfig(summary="mean").page_summary(128, 32, torch.bfloat16) == "mean"


@pytest.mark.parametrize(
    ("values", "floor", "limit_ratio"),
    [
        ({}, 0.0, Fraction(0)),
        ({"budget_limit_ratio": 0.5}, 0.0, Fraction(0)),
        ({"budget": "coverage"}, 0.9, Fraction(1, 4)),
        ({"budget": "coverage", "budget_coverage": 0.7, "budget_limit_ratio": 0.1}, 0.7, Fraction(1, 10)),
        ({"budget": "coverage", "budget_ratio": 0.3}, 0.9, Fraction(3, 10)),
        ({"conservative": "on"}, 0.9, Fraction(1)),
        ({"conservative": 0.5}, 0.5, Fraction(1)),
        ({"conservative": 1, "budget": "coverage"}, 1.0, Fraction(1)),
        ({"conservative": 0.2, "budget": "coverage", "budget_limit_ratio": 0.1}, 0.9, Fraction(1)),
    ],
)
def test_floors_and_limits_follow_from_rule_and_conservative_mode(
    values: dict[str, Any], floor: float, limit_ratio: Fraction
) -> None:
    config = RheoConfig(**values)
    settings = config.budget_settings()
    assert (settings.floor, settings.limit_ratio) == (floor, limit_ratio)
    assert config.budgets_grow == (floor > 0)
    table = config.budget_table(32, 4096)
    assert table.reads_scores == config.budgets_grow
    cap = math.ceil(4096 * settings.ratio)
    assert int(table.caps[4096]) == cap
    assert table.width(4096) == max(cap, math.ceil(4096 * limit_ratio)), (
        "graphs are wide enough for what may grow"
    )


def test_the_default_budget_has_a_floor_in_tokens_that_short_contexts_are_below() -> None:
    table = RheoConfig().budget_table(32, 4096)
    assert [int(table.caps[pages]) for pages in (64, 256, 4096)] == [64, 64, 164]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"budget_ratio": 1.0}, False),
        ({"budget_ratio": 1.0, "dense_threshold": 0}, False),
        ({}, True),
        ({"budget_ratio": 0.5}, True),
        ({"budget_max_pages": 99}, True),
    ],
)
def test_the_log_says_what_a_budget_of_less_than_all_pages_risks(
    caplog: pytest.LogCaptureFixture, values: dict[str, Any], told: bool
) -> None:
    RheoConfig(**values).warn_of_budget()
    assert ["can lose answers" in record.message for record in caplog.records] == [True] * told
