"""Server arguments that rheo cannot serve with are one sentence; the others get what rheo needs."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from rheo_sglang.config import ENVIRONMENT, ConfigError
from rheo_sglang.validate import adapt_server_args, check_kernels, uses_rheo
from unit.sglang_versions import unresolved_arguments

REFUSED: list[tuple[str, Any, str]] = [
    ("prefill_attention_backend", "rheo", "not set beside --attention-backend rheo"),
    ("decode_attention_backend", "triton", "not set beside --attention-backend rheo"),
    ("page_size", 1, "16, 32, 64"),
    ("page_size", 128, "16, 32, 64"),
    ("kv_cache_dtype", "fp8_e5m2", "auto, bf16, bfloat16, fp8_e4m3"),
    ("radix_cache_backend", "lmcache", "not set, or 'rheo'"),
    ("speculative_algorithm", "EAGLE", "not set"),
    ("disaggregation_mode", "decode", "not set"),
    ("enable_mixed_chunk", True, "not set"),
    ("enable_hierarchical_cache", True, "not set"),
    ("enable_two_batch_overlap", True, "not set"),
    ("enable_pdmux", True, "not set"),
    ("enable_lmcache", True, "not set"),
    ("enable_hisparse", True, "not set"),
    ("enable_streaming_session", True, "not set"),
    ("enable_memory_saver", True, "not set"),
    ("dcp_size", 2, "not set"),
]


@pytest.mark.parametrize(
    ("name", "value", "allowed"), REFUSED, ids=[f"{case[0]}={case[1]}" for case in REFUSED]
)
def test_an_unsupported_argument_is_one_sentence(name: str, value: Any, allowed: str) -> None:
    arguments = unresolved_arguments(attention_backend="rheo", **{name: value})
    with pytest.raises(ConfigError) as caught:
        adapt_server_args(arguments)
    flag = "--" + name.replace("_", "-")
    assert str(caught.value) == f"rheo: {flag}={value!r} is not supported; allowed: {allowed}"


STORAGE: list[tuple[dict[str, Any], str]] = [
    (
        {"hicache_storage_backend": "mooncake"},
        "--hicache-storage-backend='mooncake' is not supported; allowed: file, dynamic",
    ),
    ({"tp_size": 2}, "--tp-size=2 is not supported; allowed: 1 beside --hicache-storage-backend"),
    ({"dp_size": 2}, "--dp-size=2 is not supported; allowed: 1 beside --hicache-storage-backend"),
    (
        {"disable_radix_cache": True},
        "--disable-radix-cache=True is not supported; allowed: not set beside --hicache-storage-backend, which keeps",
    ),
    (
        {"hicache_write_policy": "write_back"},
        "--hicache-write-policy='write_back' is not supported; allowed: write_through beside",
    ),
    ({"enable_lora": True}, "--enable-lora=True is not supported; allowed: not set beside"),
    (
        {"hicache_storage_backend_extra_config": "{"},
        "--hicache-storage-backend-extra-config='{' is not supported; allowed: a JSON object, or @ and the name of a",
    ),
    (
        {"hicache_storage_backend": "dynamic", "hicache_storage_backend_extra_config": "{}"},
        "--hicache-storage-backend-extra-config='{}' is not supported; allowed: one with backend_name beside",
    ),
]


@pytest.mark.parametrize(("values", "sentence"), STORAGE, ids=[next(iter(case[0])) for case in STORAGE])
def test_what_storage_cannot_serve_with_is_one_sentence(values: dict[str, Any], sentence: str) -> None:
    given = {"attention_backend": "rheo", "hicache_storage_backend": "file", **values}
    with pytest.raises(ConfigError) as caught:
        adapt_server_args(unresolved_arguments(**given))
    assert str(caught.value).startswith(f"rheo: {sentence}")
    assert "\n" not in str(caught.value)


def test_storage_is_served_by_its_flag_alone() -> None:
    adapt_server_args(unresolved_arguments(attention_backend="rheo", hicache_storage_backend="file"))


def test_the_flag_alone_selects_everything_rheo_needs() -> None:
    arguments = unresolved_arguments(attention_backend="rheo")
    adapt_server_args(arguments)
    assert arguments.page_size == 32
    assert arguments.radix_cache_backend == "rheo"
    assert arguments.disable_cuda_graph is True
    assert arguments.attention_backend == "rheo"


@pytest.mark.parametrize("page_size", [16, 32, 64])
@pytest.mark.parametrize("kv_cache_dtype", ["auto", "bf16", "bfloat16", "fp8_e4m3"])
def test_supported_choices_are_kept(page_size: int, kv_cache_dtype: str) -> None:
    arguments = unresolved_arguments(
        page_size=page_size, kv_cache_dtype=kv_cache_dtype, radix_cache_backend="rheo"
    )
    adapt_server_args(arguments)
    assert (arguments.page_size, arguments.kv_cache_dtype) == (page_size, kv_cache_dtype)


def test_adapting_twice_is_adapting_once() -> None:
    arguments = unresolved_arguments(attention_backend="rheo", page_size=64)
    adapt_server_args(arguments)
    adapt_server_args(arguments)
    assert arguments.page_size == 64


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, False),
        ({"attention_backend": "triton"}, False),
        ({"attention_backend": "rheo"}, True),
        ({"prefill_attention_backend": "rheo"}, True),
        ({"decode_attention_backend": "rheo"}, True),
    ],
)
def test_rheo_is_used_where_any_backend_flag_names_it(values: dict[str, str], expected: bool) -> None:
    assert uses_rheo(unresolved_arguments(**values)) is expected


@pytest.mark.parametrize(
    ("config", "name", "value", "allowed"),
    [
        (
            {"importance_file": "/tmp/importance"},
            "disable_radix_cache",
            True,
            "not set beside importance_file",
        ),
        (
            {"tree_eviction": "importance"},
            "radix_eviction_policy",
            "lfu",
            "not set beside tree_eviction=importance",
        ),
        ({"tree_eviction": "importance"}, "pp_size", 2, "1 beside tree_eviction=importance"),
        ({"conservative_margin": 0.5}, "pp_size", 2, "1 beside conservative_margin"),
    ],
)
def test_a_setting_refuses_what_leaves_it_nothing_to_work_on(
    monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], name: str, value: Any, allowed: str
) -> None:
    arguments = unresolved_arguments(attention_backend="rheo", **{name: value})
    monkeypatch.setenv(ENVIRONMENT, json.dumps(config))
    with pytest.raises(ConfigError) as caught:
        adapt_server_args(arguments)
    message = str(caught.value)
    assert message.startswith(f"rheo: --{name.replace('_', '-')}={value!r}")
    assert allowed in message
    monkeypatch.delenv(ENVIRONMENT)
    adapt_server_args(arguments)


def test_a_compiled_module_that_does_not_load_is_named_in_one_sentence() -> None:
    """Before any weights are loaded; the process is one that has not loaded it yet."""
    code = (
        "import sys; sys.modules['rheo_kernels.cpu._native'] = None\n"
        "from rheo_sglang.errors import ConfigError\n"
        "from rheo_sglang.validate import check_kernels\n"
        "try: check_kernels()\n"
        "except ConfigError as error: print(error)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.startswith("rheo: the compiled module of rheo_kernels.cpu does not load (")
    assert "; allowed: a package that was built for this Python" in found.stdout
    assert found.stdout.count("\n") == 1
    check_kernels()
