"""Every setting of this SGLang is honoured, irrelevant or refused, and a refused one is one sentence."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from rheo_sglang.errors import ConfigError
from rheo_sglang.sglang_settings import HONOURED, IRRELEVANT, REFUSED
from rheo_sglang.validate import adapt_server_args
from unit.sglang_versions import setting_names, unresolved_arguments

NAMES = setting_names()
OTHER: dict[Any, Any] = {False: True, None: "other", 1: 2}
"""A value that switches on what a default leaves off."""


def test_every_setting_of_this_version_is_in_exactly_one_table() -> None:
    tables = Counter([*HONOURED, *IRRELEVANT, *REFUSED])
    assert {name: tables[name] for name in NAMES if tables[name] != 1} == {}


def test_no_setting_is_in_two_tables() -> None:
    assert [name for name, count in Counter([*HONOURED, *IRRELEVANT, *REFUSED]).items() if count > 1] == []


def test_the_defaults_of_this_version_are_served() -> None:
    arguments = unresolved_arguments(attention_backend="rheo")
    adapt_server_args(arguments)
    off = {name: getattr(arguments, name) for name in REFUSED if name in NAMES}
    assert all(value in REFUSED[name] for name, value in off.items())


@pytest.mark.parametrize("name", sorted(set(REFUSED) & set(NAMES)))
def test_a_refused_setting_is_one_sentence_with_flag_value_and_what_is_allowed(name: str) -> None:
    default: Any = getattr(unresolved_arguments(), name)
    value = OTHER.get(default, "other")
    with pytest.raises(ConfigError) as caught:
        adapt_server_args(unresolved_arguments(attention_backend="rheo", **{name: value}))
    message = str(caught.value)
    flag = "--" + name.replace("_", "-")
    assert message.startswith(f"rheo: {flag}={value!r} is not supported; allowed: not set")
    assert "\n" not in message


@pytest.mark.parametrize("value", ["full", "disabled"])
def test_values_that_leave_a_refused_setting_off_are_served(value: str) -> None:
    arguments = unresolved_arguments(attention_backend="rheo", cuda_graph_backend_decode=value)
    adapt_server_args(arguments)
    assert arguments.cuda_graph_backend_decode == value


@pytest.mark.parametrize("phase", ["decode", "prefill"])
@pytest.mark.parametrize("as_text", [True, False])
def test_a_graph_configuration_is_held_to_the_flags_it_stands_for(phase: str, as_text: bool) -> None:
    config: Any = {phase: {"backend": "breakable"}}
    arguments = unresolved_arguments(
        attention_backend="rheo", cuda_graph_config=json.dumps(config) if as_text else config
    )
    with pytest.raises(
        ConfigError, match=rf"--cuda-graph-config {phase}.backend='breakable' is not supported"
    ):
        adapt_server_args(arguments)
