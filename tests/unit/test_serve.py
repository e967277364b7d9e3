"""`rheo serve` hands SGLang's arguments on, and adds what a server with rheo, or on a CPU, needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rheo_sglang.errors import ConfigError
from rheo_sglang.serve import CPU_ENGINE, server_command
from rheo_sglang.validate import check_device

LAUNCH = [sys.executable, "-m", "sglang.launch_server"]
MODEL = ["--model-path", "m"]
RHEO = ["--attention-backend", "rheo"]
CPU = ["--device", "cpu"]


@pytest.mark.parametrize(
    ("given", "gpu", "added", "on_cpu"),
    [
        ([], True, RHEO, False),
        ([], False, [*RHEO, *CPU], True),
        (CPU, False, RHEO, True),
        (CPU, True, RHEO, True),
        (["--device=cpu"], True, RHEO, True),
        (["--device", "cuda"], False, RHEO, False),
        (["--attention-backend", "torch_native"], False, CPU, True),
        (["--attention-backend=rheo", "--rheo-config", '{"policy": "lru"}'], True, [], False),
    ],
)
def test_what_is_not_given_is_added(
    monkeypatch: pytest.MonkeyPatch, given: list[str], gpu: bool, added: list[str], on_cpu: bool
) -> None:
    monkeypatch.delenv(CPU_ENGINE, raising=False)
    command, environment = server_command([*MODEL, *given], gpu)
    assert command == [*LAUNCH, *MODEL, *given, *added]
    assert environment == {**os.environ, **({CPU_ENGINE: "1"} if on_cpu else {})}


def test_the_command_hands_every_argument_on(tmp_path: Path) -> None:
    package = tmp_path / "sglang"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "launch_server.py").write_text("import sys; print(sys.argv[1:])\n")
    arguments = [
        "--model-path",
        "m",
        "--json",
        "--url",
        "x",
        "-h",
        "--port=1",
        "--attention-backend",
        "rheo",
        *CPU,
    ]
    process = subprocess.run(
        [sys.executable, "-m", "rheo_sglang.cli", "serve", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.stdout == f"{arguments}\n", process.stderr


@pytest.mark.parametrize(
    ("device", "engine", "sentence"),
    [
        ("cpu", None, "--device cpu is given"),
        ("cpu", "0", "--device cpu is given"),
        (None, None, "--device cpu is what is left"),
        ("xpu", "1", "--device='xpu' is not supported"),
        ("cuda", "1", "--device='cuda' is not supported"),
    ],
)
def test_a_device_that_cannot_serve_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, device: str | None, engine: str | None, sentence: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.delenv(CPU_ENGINE, raising=False)
    if engine is not None:
        monkeypatch.setenv(CPU_ENGINE, engine)
    with pytest.raises(ConfigError) as caught:
        check_device(device)
    assert sentence in str(caught.value)
    assert "allowed: " in str(caught.value)


@pytest.mark.parametrize("device", [None, "cpu"])
def test_a_cpu_is_served_with_sglangs_cpu_engine(monkeypatch: pytest.MonkeyPatch, device: str | None) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv(CPU_ENGINE, "1")
    check_device(device)


def test_a_broken_torch_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.12: cannot open')\n")
    process = subprocess.run(
        [sys.executable, "-m", "rheo_sglang.cli", "serve", *MODEL],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 2
    assert process.stderr == "rheo serve: error: libcudart.so.12: cannot open; see 'rheo doctor'\n"
