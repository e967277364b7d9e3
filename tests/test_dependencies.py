"""What a plain install brings is what the plugin imports; the evaluation has an extra, and says when it is missing."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from rheo_sglang.evaluation.__main__ import COMMANDS, NEEDED, NEEDED_FOR_RULER, TO_SEND
from rheo_sglang.evaluation.prompt_files import write_lines

REPOSITORY = Path(__file__).parent.parent
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
PLAIN, EXTRA = set(PROJECT["dependencies"]), set(PROJECT["optional-dependencies"]["eval"])
FROM_SGLANG = {"sglang", "sgl_kernel", "torch", "triton", "cuda", "fastapi", "prometheus_client"}
EVALUATION = REPOSITORY / "rheo_sglang" / "evaluation"
TRACES, REPLAY = (REPOSITORY / "rheo_sglang" / name for name in ("traces", "replay"))

READERS = {REPOSITORY / "rheo_sglang" / "importance" / f"{name}.py": name for name in ("vllm", "lmcache")}
"""Files that another program imports, in whose process its own package is there."""


def imported(*files: Path) -> set[str]:
    """Packages beyond the standard library and the project's own that files import anywhere."""
    names: set[str] = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module)
    packages = {name.split(".")[0] for name in names}
    return packages - sys.stdlib_module_names - {"rheo_kernels", "rheo_sglang"}


def test_the_plugin_needs_what_a_plain_install_brings() -> None:
    files = [*(REPOSITORY / "rheo_sglang").rglob("*.py"), *(REPOSITORY / "kernels").rglob("*.py")]
    with_extras = {EVALUATION, TRACES, REPLAY}
    used = imported(*(file for file in files if file not in READERS and not with_extras & set(file.parents)))
    assert used - FROM_SGLANG == PLAIN


def test_readers_of_importance_need_the_program_that_imports_them_alone() -> None:
    for file, package in READERS.items():
        assert imported(file) - PLAIN == {package}


def test_traces_and_their_replay_need_what_their_extras_bring() -> None:
    extras = PROJECT["optional-dependencies"]
    for folder, extra in ((TRACES, "trace"), (REPLAY, "replay")):
        used = imported(*folder.glob("*.py"))
        assert used - FROM_SGLANG - PLAIN <= set(extras[extra])
    assert set(extras["trace"]) <= set(extras["replay"])


def test_the_evaluation_needs_what_its_extra_brings() -> None:
    used = imported(*EVALUATION.glob("*.py")) - FROM_SGLANG - PLAIN
    assert used - set(NEEDED_FOR_RULER) == set(NEEDED)
    assert set(NEEDED.values()) == EXTRA


@pytest.mark.parametrize("package", NEEDED)
def test_a_package_that_is_missing_is_named_in_one_sentence(package: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None\nfrom rheo_sglang.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "eval", "recall", "--base-url", "http://127.0.0.1:1"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 1
    assert (
        found.stderr
        == f"rheo eval: {NEEDED[package]} not installed; run pip install '.[eval]' in the repository.\n"
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_help_needs_no_extra(command: str) -> None:
    hidden = sorted({*NEEDED, *NEEDED_FOR_RULER} - set(TO_SEND))
    code = f"import sys; sys.modules.update(dict.fromkeys({hidden!r}))\n"
    code += "from rheo_sglang.cli import main; sys.exit(main())"
    found = subprocess.run(
        [sys.executable, "-c", code, "eval", command, "--help"], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    assert f"rheo eval {command}" in found.stdout


def test_prompts_from_files_are_sent_with_what_sglang_brings(tmp_path: Path) -> None:
    hidden = sorted({*NEEDED, *NEEDED_FOR_RULER} - set(TO_SEND))
    hide = f"import sys; sys.modules.update(dict.fromkeys({hidden!r}))"
    code = f"{hide}\nfrom rheo_sglang.cli import main; sys.exit(main())"
    for suite in ("divergence", "recall", "ruler"):
        file = tmp_path / f"{suite}.jsonl.gz"
        write_lines(file, {"suite": suite, "chat": True}, [])
        where = ["--prompts", str(file), "--save-prompts", str(tmp_path / "again.jsonl.gz")]
        found = subprocess.run(
            [sys.executable, "-c", code, "eval", suite, *where], capture_output=True, text=True
        )
        assert (found.returncode, found.stderr) == (0, "")


def test_the_tasks_need_nothing() -> None:
    code = f"import sys; sys.modules.update(dict.fromkeys({list(NEEDED)!r})); import rheo_sglang.evaluation.haystack"
    subprocess.run([sys.executable, "-c", code], check=True)
