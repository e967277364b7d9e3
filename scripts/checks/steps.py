"""The steps of the test command: environments, models, static checks, tests with the newest and the oldest SGLang."""

from __future__ import annotations

import sys
from pathlib import Path

from checks.sglang_tests import files_that_use_sglang
from checks.step import Step
from environment.create import REPOSITORY, SGLANG_VERSIONS, default_path

OLDEST, NEWEST = SGLANG_VERSIONS[0], SGLANG_VERSIONS[-1]
SMOLLM2, TINY_MODELS = "model SmolLM2", "tiny models"
INSTALL_SILENCE = 3600.0
"""pip prints nothing while it downloads."""


def python(version: str) -> str:
    """Python of the environment with this SGLang."""
    return str(default_path(version) / "bin" / "python")


def environment(version: str) -> str:
    """Name of the step that creates the environment with this SGLang."""
    return f"environment, SGLang {version}"


def environments() -> list[Step]:
    """The environments of both SGLang versions."""
    return [
        Step(
            environment(version),
            (sys.executable, "-u", "scripts/environment/create.py", "--dev", "--sglang", version),
            INSTALL_SILENCE,
            needed=True,
        )
        for version in (NEWEST, OLDEST)
    ]


def static_checks() -> list[Step]:
    """Models, format, lint, types and layers."""
    newest = python(NEWEST)
    commands = {
        SMOLLM2: (newest, "scripts/convert_model.py", "smollm2-135m-instruct"),
        TINY_MODELS: (newest, "scripts/make_tiny_models.py"),
        "format": (newest, "-m", "ruff", "format", "--check", "."),
        "lint": (newest, "-m", "ruff", "check", "."),
        "types": (newest, "-m", "mypy"),
        "layers": (str(Path(newest).with_name("lint-imports")), "--no-cache"),
    }
    return [Step(name, command, after=(environment(NEWEST),)) for name, command in commands.items()]


def test_steps(servers: bool, full: bool) -> list[Step]:
    """The tests, the longest steps first.

    Parameters
    ----------
    servers : bool
        Whether those that start a server are among them.
    full : bool
        Also run with the oldest SGLang what does not depend on SGLang, and every parametrisation.
    """
    repository = Path(REPOSITORY)
    with_both = [
        file
        for folder in ("tests/unit", "tests/property")
        for file in files_that_use_sglang(repository, folder)
    ]
    alone = sorted(str(file.relative_to(repository)) for file in (repository / "tests").glob("test_*.py"))
    folders = {
        path.name
        for path in (repository / "tests").iterdir()
        if path.is_dir() and any(path.rglob("test_*.py")) and path.name not in ("server", "kernels")
    }
    kernels = sorted((repository / "tests" / "kernels").glob("test_*.py"))
    cuda = [str(file.relative_to(repository)) for file in kernels if file.name.startswith("test_cuda")]
    other = [str(file.relative_to(repository)) for file in kernels if not file.name.startswith("test_cuda")]
    options = ("--full",) if full else ()
    chosen = ("tests/unit", "tests/property") if full else tuple(with_both)

    def of_folder(name: str) -> Step:
        return pytest_step(f"tests/{name}", NEWEST, f"tests/{name}", *options)

    return [
        *([pytest_step(f"servers, SGLang {NEWEST}", NEWEST, "tests/server", *options)] if servers else []),
        pytest_step("kernels in CUDA C++", NEWEST, *cuda, *options),
        of_folder("contract"),
        *([pytest_step(f"servers, SGLang {OLDEST}", OLDEST, "tests/server", *options)] if servers else []),
        pytest_step("scripts and evaluation", NEWEST, *alone, *options),
        *(of_folder(name) for name in sorted(folders - {"contract"}, reverse=True)),
        pytest_step(f"unit and property, SGLang {OLDEST}", OLDEST, *chosen, *options),
        pytest_step("kernels", NEWEST, *other, *options),
    ]


def pytest_step(name: str, version: str, *arguments: str) -> Step:
    """A step that runs pytest such that `TestReport` can read its output."""
    options = (
        "-v",
        "-rs",
        "--durations=15",
        "--durations-min=2",
        "--color=no",
        "--tb=short",
        "-p",
        "no:cacheprovider",
    )
    after = environment(version), SMOLLM2, TINY_MODELS
    return Step(name, (python(version), "-m", "pytest", *options, *arguments), after=after)
