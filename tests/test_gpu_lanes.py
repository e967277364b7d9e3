"""Jobs in lanes: in order within one, side by side between them, after what they name, and ended when time is over."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parents[1] / "scripts" / "gpu_lanes.py"


def ignore_interrupts() -> None:
    """As in what a shell without job control starts in the background."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def run(folder: Path, lanes: dict[str, Any], *arguments: str) -> list[list[str]]:
    """Run lanes to their ends; words of the lines of ``status.txt``, without times."""
    file = folder / "lanes.json"
    file.write_text(json.dumps(lanes))
    command = [sys.executable, str(SCRIPT), str(file), "--logs", str(folder / "logs"), "--ends", *arguments]
    subprocess.run(command, check=True, timeout=60, preexec_fn=ignore_interrupts)
    return [line.split()[1:] for line in (folder / "logs" / "status.txt").read_text().splitlines()]


def job(name: str, command: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "command": command, **more}


def test_a_lane_keeps_its_order_and_a_job_waits_for_what_it_names(tmp_path: Path) -> None:
    lanes = {
        "one": [job("first", "sleep 0.3; echo $GPU", environment={"GPU": "3"}), job("second", "exit 7")],
        "two": [job("third", "true", after=["second"])],
    }
    said = run(tmp_path, lanes)
    assert [words[:2] for words in said] == [
        ["begin", "first"],
        ["end", "first"],
        ["begin", "second"],
        ["end", "second"],
        ["begin", "third"],
        ["end", "third"],
        ["idle"],
    ]
    assert said[3][2] == "7"
    assert (tmp_path / "logs" / "first.log").read_text() == "3\n"


def test_a_job_whose_time_is_over_is_interrupted_and_the_lane_goes_on(tmp_path: Path) -> None:
    slow = f"{sys.executable} -c 'import time; time.sleep(60)' || echo told"
    said = run(tmp_path, {"one": [job("slow", slow, seconds=0.7), job("next", "true")]})
    assert "KeyboardInterrupt" in (tmp_path / "logs" / "slow.log").read_text()
    assert said[-2][:3] == ["end", "next", "0"]


def test_jobs_that_need_one_that_failed_are_skipped_and_others_go_on(tmp_path: Path) -> None:
    lanes = {
        "one": [job("check", "exit 3"), job("unneeded", "true", after=["check"])],
        "two": [job("first", "true", needs=["check"]), job("second", "true", needs=["first"])],
        "three": [job("sound", "true"), job("third", "true", needs=["sound"])],
    }
    said = run(tmp_path, lanes)
    skipped = [words[1:] for words in said if words[0] == "skip"]
    assert skipped == [["first", "needs", "check"], ["second", "needs", "first"]]
    assert {words[1] for words in said if words[0] == "end"} == {"check", "unneeded", "sound", "third"}
    assert said[-1] == ["idle"]


def test_files_are_put_together_from_pieces_that_arrive_in_any_order(tmp_path: Path) -> None:
    contents = {"a.bin": b"0123456", "b.bin": b"789abcdefgh", "c.bin": b""}
    stream, size = b"".join(contents.values()), 4
    pieces, into = tmp_path / "pieces", tmp_path / "into"
    pieces.mkdir()
    parts = [stream[start : start + size] for start in range(0, len(stream), size)]
    (pieces / "00").write_bytes(parts[0])
    rest = "; ".join(
        f"printf %s {part.decode()} > {pieces}/{number:02d}"
        for number, part in reversed(list(enumerate(parts))[1:])
    )
    manifest = tmp_path / "manifest.json"
    files = [[name, len(content)] for name, content in contents.items()]
    manifest.write_text(json.dumps({"piece": size, "files": files}))
    lanes = {"parts": [job("arrive", f"sleep 0.3; {rest}")], "use": [job("use", "true", after=["b.bin"])]}
    arguments = ["--pieces", str(pieces), "--manifest", str(manifest), "--into", str(into)]
    said = run(tmp_path, lanes, *arguments)
    assert {name: (into / name).read_bytes() for name in contents} == contents
    assert said.index(["file", "b.bin"]) < said.index(["begin", "use"])
