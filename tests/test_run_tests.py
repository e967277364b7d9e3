"""The test command: results, silence, interrupts, progress and summary, with real processes and a real pytest."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from checks import steps
from checks.pytest_output import TestReport
from checks.runner import Runner
from checks.sglang_tests import files_that_use_sglang
from checks.step import Outcome, Result, Step
from checks.steps import pytest_step
from checks.summary import summary
from common.measurement import SCRIPTS

HANGS = "import sys, time; print('began', flush=True); time.sleep(120)"
COMMAND = """
import sys
from pathlib import Path
from checks.step import Step
from run_tests import run_steps

def python(name, code, *after):
    return Step(name, (sys.executable, "-u", "-c", code), after=after)

SLOW = '''
import sys, time
print("began", flush=True)
try:
    time.sleep(120)
except KeyboardInterrupt:
    print("interrupted in good order", flush=True)
    sys.exit(2)
'''
steps = [python("quick", "print(1)"), python("slow", SLOW, "quick"), python("later", "print(2)", "slow")]
sys.exit(run_steps(steps, Path(sys.argv[1])))
"""


def python(name: str, code: str, **options: object) -> Step:
    return Step(name, (sys.executable, "-u", "-c", code), **options)


def run(tmp_path: Path, *steps: Step, slots: int = 2) -> tuple[dict[str, Outcome], list[str]]:
    said: list[str] = []
    runner = Runner(
        tmp_path, tmp_path / "logs", os.environ, slots, said.append, patience=5, progress_every=0.5
    )
    runner.run(steps)
    return {outcome.step.name: outcome for outcome in runner.outcomes}, said


def pytest_with(name: str, file: Path) -> Step:
    step = pytest_step(name, "0", str(file), "-c", os.devnull, f"--rootdir={file.parent}")
    return Step(name, (sys.executable, *step.command[1:]))


def test_results_are_those_of_the_processes(tmp_path: Path) -> None:
    outcomes, said = run(tmp_path, python("good", "print('fine')"), python("bad", "raise SystemExit('why')"))
    assert outcomes["good"].result is Result.PASSED
    assert outcomes["bad"].result is Result.FAILED
    assert outcomes["good"].log.read_text() == "fine\n"
    assert any("why" in line for line in said) and not any("fine" in line for line in said)
    assert [line.split("] ")[1] for line in said[:2]] == ["good: begins", "bad: begins"]


def test_without_what_is_needed_nothing_that_waits_for_it_is_run(tmp_path: Path) -> None:
    outcomes, _ = run(
        tmp_path,
        python("needed", "raise SystemExit(1)", needed=True),
        python("later", "print()", after=("needed",)),
        python("last", "print()", after=("later",)),
        python("other", "print()"),
    )
    assert outcomes["later"].result is outcomes["last"].result is Result.NOT_RUN
    assert outcomes["other"].result is Result.PASSED
    outcomes, _ = run(
        tmp_path, python("first", "raise SystemExit(1)"), python("later", "print()", after=("first",))
    )
    assert outcomes["later"].result is Result.PASSED


def test_a_step_begins_when_what_it_waits_for_has_ended_and_others_do_not_wait(tmp_path: Path) -> None:
    wait = "import pathlib, time\nwhile not pathlib.Path('free').exists(): time.sleep(0.05)"
    look = "import pathlib; assert pathlib.Path('made').exists(); pathlib.Path('free').touch()"
    outcomes, said = run(
        tmp_path,
        python("slow", wait),
        python("makes", "import pathlib; pathlib.Path('made').touch()"),
        python("waits", look, after=("makes",)),
        python("last", "print()", after=("slow", "waits")),
    )
    assert [outcome.result for outcome in outcomes.values()] == [Result.PASSED] * 4
    told = [line.split("] ")[1].split(" after")[0] for line in said]
    assert max(map(told.index, ("slow: ok", "waits: ok"))) < told.index("last: begins")


def test_no_more_steps_run_at_once_than_there_are_slots(tmp_path: Path) -> None:
    code = (
        "import pathlib, time; mine = pathlib.Path('{}.running'); mine.touch(); time.sleep(0.3)\n"
        "assert len(list(pathlib.Path().glob('*.running'))) <= 2; mine.unlink()"
    )
    outcomes, _ = run(tmp_path, *(python(f"step{i}", code.format(i)) for i in range(5)))
    assert [outcome.result for outcome in outcomes.values()] == [Result.PASSED] * 5


def test_a_silent_step_is_stopped_and_one_that_prints_is_not(tmp_path: Path) -> None:
    prints = "import time\nfor i in range(20): print(i, flush=True); time.sleep(0.2)"
    outcomes, said = run(
        tmp_path, python("silent", HANGS, silence=2.0), python("prints", prints, silence=2.0)
    )
    assert outcomes["silent"].result is Result.SILENT
    assert outcomes["prints"].result is Result.PASSED
    assert any("silent: nothing printed for" in line for line in said)


def test_a_step_that_ignores_the_interrupt_is_killed_with_its_children(tmp_path: Path) -> None:
    child = f"import signal, time; signal.signal(2, signal.SIG_IGN); {HANGS}"
    code = (
        "import signal, subprocess, sys, time; signal.signal(2, signal.SIG_IGN)\n"
        f"print(subprocess.Popen([sys.executable, '-c', {child!r}]).pid, flush=True); time.sleep(120)"
    )
    runner = Runner(tmp_path, tmp_path / "logs", os.environ, patience=0.5, say=lambda line: None)
    runner.run([python("stubborn", code, silence=1.5)])
    (outcome,) = runner.outcomes
    assert outcome.result is Result.SILENT
    assert outcome.log is not None
    child_pid = next(int(line) for line in outcome.log.read_text().split() if line.isdigit())
    deadline = time.monotonic() + 20
    while Path(f"/proc/{child_pid}").exists() and "Z" not in state(child_pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_in_the_background_it_sums_up_and_exits_with_130(
    tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "command.py").write_text(COMMAND)
    shell = subprocess.Popen(
        [
            "sh",
            "-c",
            '"$@" & echo $!; wait $!; echo "exit status $?"',
            "sh",
            sys.executable,
            "command.py",
            "logs",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
        stdout=subprocess.PIPE,
        text=True,
    )
    log = tmp_path / "logs" / "slow.log"
    deadline = time.monotonic() + 60
    while not (log.exists() and "began" in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert shell.stdout is not None
    os.kill(int(shell.stdout.readline()), number)
    text, _ = shell.communicate(timeout=60)
    assert "exit status 130" in text
    assert "interrupted in good order" in log.read_text()
    table = text[text.index("--- summary") :]
    for result, name in [("ok", "quick"), ("stopped", "slow"), ("not run", "later")]:
        assert any(line.startswith(result) and name in line for line in table.splitlines())


TESTS = """
import time
import pytest

@pytest.mark.parametrize("i", range(4))
def test_quick(i): pass

def test_broken(): assert 1 == 2, "the reason"

@pytest.mark.skip(reason="needs a moon")
def test_skipped(): pass

@pytest.mark.skip(reason="needs a moon")
def test_skipped_too(): pass

def test_slow(): time.sleep(2.5)
"""


def test_a_run_of_pytest_is_followed_and_summed_up(tmp_path: Path) -> None:
    file = tmp_path / "test_these.py"
    file.write_text(TESTS)
    outcomes, said = run(tmp_path, pytest_with("these", file))
    report = outcomes["these"].tests
    assert (report.selected, report.done) == (8, 8)
    assert dict(report.results) == {"PASSED": 5, "FAILED": 1, "SKIPPED": 2}
    assert report.broken == ["test_these.py::test_broken"]
    assert report.skips == {"needs a moon": 2}
    assert [name for _, name in report.durations] == ["test_these.py::test_slow"]
    assert any(line.endswith("these: FAILED test_these.py::test_broken") for line in said)
    assert any("7 of 8 tests done, 1 failed, now test_these.py::test_slow" in line for line in said)
    assert any("AssertionError: the reason" in line for line in said)
    lines = summary(list(outcomes.values()), 90.0).splitlines()
    assert [line for line in lines if "needs a moon" in line] == ["      2    needs a moon"]
    assert "test_these.py::test_broken  [these]" in lines
    assert any(line.endswith("test_these.py::test_slow  [these]") for line in lines)
    assert lines[-1] == "0 of 1 steps passed in 1.5 min"


def test_a_test_that_hangs_is_named(tmp_path: Path) -> None:
    file = tmp_path / "test_hang.py"
    file.write_text("import time\n\ndef test_hangs(): time.sleep(120)\n")
    step = pytest_with("hang", file)
    outcomes, said = run(tmp_path, Step("hang", step.command, silence=6.0))
    assert outcomes["hang"].result is Result.SILENT
    assert any("nothing printed" in line and "at test_hang.py::test_hangs" in line for line in said)
    assert "stopped at test_hang.py::test_hangs" in summary(list(outcomes.values()), 1.0)


def test_deselected_tests_are_not_waited_for() -> None:
    report = TestReport()
    report.read("collecting ... collected 10 items / 3 deselected / 7 selected")
    assert report.in_words() == "0 of 7 tests done, 0 failed"


def test_what_uses_sglang_through_others_is_found(tmp_path: Path) -> None:
    for name, text in {
        "rheo_sglang/plain.py": "import torch",
        "rheo_sglang/hooks.py": "def register():\n    from sglang.srt import server",
        "rheo_sglang/through.py": "from rheo_sglang import hooks",
        "tests/unit/helper.py": "import rheo_sglang.through",
        "tests/unit/test_far.py": "from helper import x",
        "tests/unit/test_lazy.py": "def test(): from rheo_sglang.hooks import register",
        "tests/unit/test_name.py": "assert import_module('sglang.srt.server')",
        "tests/unit/test_plain.py": "from rheo_sglang.plain import y\n'of rheo_sglang.plain'",
    }.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    names = [Path(file).name for file in files_that_use_sglang(tmp_path, "tests/unit")]
    assert names == ["test_far.py", "test_lazy.py", "test_name.py"]


def test_every_step_waits_for_steps_that_come_before_it() -> None:
    seen: set[str] = set()
    for step in [*steps.environments(), *steps.static_checks(), *steps.test_steps(servers=True, full=True)]:
        assert seen.issuperset(step.after), step.name
        seen.add(step.name)


def test_every_test_file_of_the_project_is_in_a_step() -> None:
    named = [
        Path(argument) for step in steps.test_steps(servers=True, full=False) for argument in step.command
    ]
    for file in (SCRIPTS.parent / "tests").rglob("test_*.py"):
        mine = file.relative_to(SCRIPTS.parent)
        assert any(path == mine or path in mine.parents for path in named if path.parts[:1] == ("tests",)), (
            mine
        )
