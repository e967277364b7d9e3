"""A start that rheo refuses ends, whatever its processes have open."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

WITH_AN_UNSENT_MESSAGE = """
import atexit, gc, os, sys
import zmq
from rheo_sglang import refusal
from rheo_sglang.errors import ConfigError

class Owner:
    def __init__(self):
        self.itself = self
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.PUSH)
        self.socket.connect("ipc://" + sys.argv[1])
        self.socket.send(b"unread")

owners = [Owner()]

@atexit.register
def collect():
    owners.clear()
    gc.collect()
"""
SCHEDULER = """
class Arguments:
    dp_size = 1

def refused(scheduler, server_args):
    raise ConfigError("no room")

refusal.end_scheduler(refused, None, Arguments)
"""
STARTED_BY_THE_USER = """
refusal.note_command_line()
refusal.report_dead_scheduler(RuntimeError("died"), 0, None)
"""


def end(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a process with an unread message and a cycle that shutdown collects, as torch's can, to its end."""
    return subprocess.run(
        [sys.executable, "-c", WITH_AN_UNSENT_MESSAGE + program, str(folder / "nobody")],
        env={"RHEO_REFUSAL_FILE": str(folder / "sentence"), "SGLANG_USE_CPU_ENGINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_refused_scheduler_leaves_its_sentence_and_ends_with_unread_messages(tmp_path: Path) -> None:
    ended = end(SCHEDULER, tmp_path)
    assert ended.returncode == 78, ended.stderr
    assert (tmp_path / "sentence").read_text() == "no room"
    assert not ended.stderr


def test_the_process_that_the_user_started_tells_it_and_ends_with_unread_messages(tmp_path: Path) -> None:
    (tmp_path / "sentence").write_text("no room")
    ended = end(STARTED_BY_THE_USER, tmp_path)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.splitlines()[-1] == "rheo: error: no room"
    assert not (tmp_path / "sentence").exists()
