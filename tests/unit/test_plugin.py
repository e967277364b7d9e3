"""The plugin loads once, one flag selects everything, and runs without it are left as they were."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rheo_sglang import plugin, refusal
from rheo_sglang.config import ENVIRONMENT, ConfigError, RheoConfig
from rheo_sglang.hooks import arguments as argument_hooks
from rheo_sglang.hooks import model_runner, pools
from rheo_sglang.hooks import scheduler as scheduler_hooks
from unit.sglang_versions import unresolved_arguments

PLAIN = ["--model-path", "dummy", "--device", "cpu"]
RHEO = [*PLAIN, "--attention-backend", "rheo"]
COMMAND_LINES = {
    "another backend": PLAIN,
    "the flag alone": RHEO,
    "with settings": [*RHEO, "--rheo-config", '{"budget_ratio": 0.5}', "--page-size", "16"],
    "unknown setting": [*RHEO, "--rheo-config", '{"budgets": 0.5}'],
    "settings without the backend": [*PLAIN, "--rheo-config", "{}"],
    "token-sized pages": [*RHEO, "--page-size", "1"],
}


@pytest.fixture(scope="module")
def loaded() -> dict[str, Any]:
    """What a fresh process with the plugin answers to each of the command lines."""
    process = subprocess.run(
        [sys.executable, "-W", "ignore", str(Path(__file__).with_name("plugin_process.py"))],
        input=json.dumps(list(COMMAND_LINES.values())),
        env={**os.environ, "SGLANG_USE_CPU_ENGINE": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    answer = json.loads(process.stdout)
    answer["parsed"] = dict(zip(COMMAND_LINES, answer["parsed"], strict=True))
    return answer


def test_loading_twice_registers_once(loaded: dict[str, Any]) -> None:
    assert "rheo" in loaded["attention_backends"]
    assert loaded["radix_cache_backends"].count("rheo") == 1
    assert set(loaded["hooks"].values()) == {1}


def test_every_hook_finds_its_target_in_this_sglang(loaded: dict[str, Any]) -> None:
    assert loaded["unpatched"] == []


def test_a_run_with_another_backend_is_left_as_it_was(loaded: dict[str, Any]) -> None:
    assert loaded["parsed"]["another backend"] == loaded["without_plugin"]
    assert loaded["without_plugin"]["config"] is None


def test_one_flag_selects_everything(loaded: dict[str, Any]) -> None:
    values = loaded["parsed"]["the flag alone"]["values"]
    assert values["attention_backend"] == values["radix_cache_backend"] == "rheo"
    assert values["page_size"] == 32
    assert values["disable_cuda_graph"] is True


def test_settings_reach_every_process_of_the_server(loaded: dict[str, Any]) -> None:
    parsed = loaded["parsed"]["with settings"]
    assert RheoConfig.parse(parsed["config"]) == RheoConfig(budget_ratio=0.5)
    assert parsed["values"]["page_size"] == 16


@pytest.mark.parametrize(
    ("case", "shown"),
    [
        ("unknown setting", "--rheo-config: unknown key 'budgets'=0.5; allowed keys: budget, budget_ratio"),
        ("settings without the backend", "--rheo-config: needs --attention-backend rheo"),
        ("token-sized pages", "--page-size=1 is not supported; allowed: 16, 32, 64"),
    ],
)
def test_a_bad_start_ends_with_one_sentence(loaded: dict[str, Any], case: str, shown: str) -> None:
    ended = loaded["parsed"][case]
    assert ended["exit"] == 2
    assert shown in ended["stderr"]
    assert ended["stderr"].count("\n") == 1
    assert "Traceback" not in ended["stderr"]


def test_the_flag_is_offered_with_its_environment_variable() -> None:
    parser = argparse.ArgumentParser()
    assert argument_hooks.add_flag("result", parser) == "result"
    assert parser.parse_args(["--rheo-config", "{}"]).rheo_config == "{}"
    assert parser.parse_args([]).rheo_config is None
    assert ENVIRONMENT in parser.format_help()


def test_arguments_of_another_backend_are_not_adapted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, "not even a config")
    arguments = unresolved_arguments(attention_backend="triton", page_size=1, enable_mixed_chunk=True)
    argument_hooks.adapt_arguments(arguments)
    assert arguments.page_size == 1
    assert arguments.radix_cache_backend is None
    assert arguments.disable_cuda_graph is unresolved_arguments().disable_cuda_graph


class Original:
    """SGLang's own function behind a hook: remembers its call and answers."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple, dict]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> str:
        self.calls.append((args, kwargs))
        return "SGLang's answer"


@pytest.mark.parametrize(
    "hook", [pools.size_logical_space, pools.limit_requests, pools.build_pool, pools.build_allocator]
)
def test_pools_of_another_backend_are_sglangs_own(hook: Any) -> None:
    original = Original()
    configurator = SimpleNamespace(server_args=unresolved_arguments(attention_backend="triton"))
    assert hook(original, configurator, 7, max_total_tokens=9) == "SGLang's answer"
    assert original.calls == [((configurator, 7), {"max_total_tokens": 9})]


def test_models_of_another_backend_are_not_checked() -> None:
    model = object()
    assert argument_hooks.check_model(model, unresolved_arguments(attention_backend="triton")) is model


@pytest.mark.parametrize("rheo", [True, False])
def test_models_write_no_kv_into_pages_themselves(rheo: bool) -> None:
    from sglang.srt.model_executor.forward_context import ForwardContext, forward_context

    from rheo_sglang.backend import RheoAttentionBackend

    backend = object.__new__(RheoAttentionBackend) if rheo else object()
    with forward_context(ForwardContext(attn_backend=backend)):
        assert model_runner.writes_kv_with_rope(lambda batch: True, None) == (not rheo)


def test_a_bad_start_of_a_program_is_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    monkeypatch.setattr(refusal, "_from_command_line", False)
    with pytest.raises(ConfigError, match=r"--page-size=1 is not supported; allowed: 16, 32, 64"):
        argument_hooks.adapt_arguments(unresolved_arguments(attention_backend="rheo", page_size=1))


def test_server_info_of_another_backend_says_nothing_of_rheo() -> None:
    result = SimpleNamespace(internal_state={"load": 1})
    other_pool = SimpleNamespace(get_kvcache=lambda: object())
    scheduler = SimpleNamespace(token_to_kv_pool_allocator=other_pool)
    assert scheduler_hooks.add_state(result, scheduler) is result
    assert result.internal_state == {"load": 1}


def test_arguments_without_settings_parse_as_sglang_parses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    monkeypatch.setattr(refusal, "_from_command_line", False)
    original, arguments = Original(), argparse.Namespace(attention_backend=None, rheo_config=None)
    assert argument_hooks.parse_flag(original, SimpleNamespace, arguments) == "SGLang's answer"
    assert original.calls == [((SimpleNamespace, arguments), {})]
    assert ENVIRONMENT not in os.environ


@pytest.mark.parametrize(("environment", "told"), [('{"policy": "lfu"}', True), (None, False)])
def test_the_flag_wins_over_the_environment_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, environment: str | None, told: bool
) -> None:
    monkeypatch.setattr(refusal, "_from_command_line", False)
    monkeypatch.setenv(ENVIRONMENT, environment or "")
    if environment is None:
        monkeypatch.delenv(ENVIRONMENT)
    arguments = argparse.Namespace(attention_backend="rheo", rheo_config='{"policy": "lru"}')
    argument_hooks.parse_flag(Original(), SimpleNamespace, arguments)
    assert RheoConfig.from_environment() == RheoConfig(policy="lru")
    warned = [record.message for record in caplog.records if ENVIRONMENT in record.message]
    assert bool(warned) == told
    argument_hooks.parse_flag(Original(), SimpleNamespace, arguments)
    assert [record.message for record in caplog.records if ENVIRONMENT in record.message] == warned


def test_every_hook_names_a_function_of_this_sglang() -> None:
    found = plugin.hooks()
    assert len({(hook.target, hook.function) for hook in found}) == len(found)
    for hook in found:
        path = hook.target.split(".")
        for length in range(len(path) - 1, 0, -1):
            try:
                owner: Any = importlib.import_module(".".join(path[:length]))
                break
            except ModuleNotFoundError:
                continue
        for name in path[length:]:
            owner = getattr(owner, name)
        assert callable(owner)
