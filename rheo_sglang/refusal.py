"""How a start that rheo cannot serve ends: one sentence at the terminal, the exception in a program.

Model and pool sizes are known only in SGLang's scheduler processes, whose exceptions SGLang logs with tracebacks. A
scheduler process that rheo refuses leaves its sentence in a file instead and exits with `SCHEDULER_REFUSED`; the
process that the user started reads it from there.

By then both have ZeroMQ sockets with messages that nobody will read. Should Python's shutdown collect a context while
its sockets are open, it waits for these messages forever, so these two processes end without it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any, NoReturn

from rheo_sglang.errors import ConfigError

REFUSED = 2
"""Exit status of the process that the user started, as for a bad argument."""
SCHEDULER_REFUSED = 78
"""Of a scheduler process that was refused: `EX_CONFIG` of sysexits.h."""
SENTENCE_FILE = "RHEO_REFUSAL_FILE"
"""Environment variable: where the first scheduler process that is refused writes why."""

_from_command_line = False
"""Whether this process parsed a command line: then errors are meant for a terminal, not for a caller."""


def note_command_line() -> None:
    """Have this process's errors end at a terminal."""
    global _from_command_line
    _from_command_line = True


def expect_schedulers() -> None:
    """Name the file through which the scheduler processes of this server tell what they refuse."""
    os.environ[SENTENCE_FILE] = str(Path(tempfile.gettempdir()) / f"rheo-refusal-{uuid.uuid4().hex}")


def refuse(error: ConfigError) -> NoReturn:
    """End the start in the process that the user started."""
    if not _from_command_line:
        raise error
    _tell(error)
    sys.exit(REFUSED)


def end_scheduler(original: Any, scheduler: Any, server_args: Any, *args: Any, **kwargs: Any) -> None:
    """Build SGLang's scheduler; one that is refused ends its process without a traceback.

    With data parallelism another process waits for the schedulers, which would not read the sentence.
    """
    try:
        original(scheduler, server_args, *args, **kwargs)
    except ConfigError as error:
        file = os.environ.get(SENTENCE_FILE)
        if file is None or server_args.dp_size > 1:
            raise
        own = Path(f"{file}-{os.getpid()}")
        own.touch(mode=0o600)
        own.write_text(str(error))
        with contextlib.suppress(FileExistsError):
            os.link(own, file)
        own.unlink()
        _exit(SCHEDULER_REFUSED)


def report_dead_scheduler(result: Exception, rank: int, process: Any) -> Exception:
    """SGLang's error about a scheduler process that ended, unless one was refused: then end this start."""
    file = os.environ.get(SENTENCE_FILE)
    if file is not None and Path(file).exists():
        sentence = Path(file).read_text()
        Path(file).unlink()
        error = ConfigError(sentence)
        if not _from_command_line:
            raise error
        _end_children()
        _tell(error)
        _exit(REFUSED)
    return result


def _tell(error: ConfigError) -> None:
    print(f"rheo: error: {str(error).removeprefix('rheo: ')}", file=sys.stderr)


def _end_children() -> None:
    from sglang.srt.utils import kill_process_tree

    kill_process_tree(os.getpid(), include_parent=False)


def _exit(status: int) -> NoReturn:
    """End this process at once."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
