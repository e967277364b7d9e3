"""soak_faults: the soak's SGLang plugin, by which a thread of a server ends from outside amid its work."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from pathlib import Path

ENVIRONMENT = "RHEO_SOAK_FAULTS"
"""Folder of the faults: a file of a thread's name asks for that thread's end, and gets the suffix `DONE` when it has
ended, which is when it next runs Python: a thread that waits for work ends when there is some."""
ENTRY_POINT = "[sglang.srt.plugins]\nrheo-soak-faults = benchmarks.soak_faults:register\n"
DONE = ".done"
LOOK_SECONDS = 0.5


def install(folder: Path) -> None:
    """Make SGLang find this plugin in processes that have ``folder`` and ``scripts`` on their path."""
    info = folder / "rheo_soak_faults-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rheo-soak-faults\nVersion: 0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINT)


def register() -> None:
    """Look for faults from now on, where the environment asks for it."""
    if ENVIRONMENT in os.environ:
        folder = Path(os.environ[ENVIRONMENT])
        threading.Thread(target=_look, args=[folder], name="soak-faults", daemon=True).start()


def _look(folder: Path) -> None:
    ending: dict[str, threading.Thread] = {}
    while True:
        time.sleep(LOOK_SECONDS)
        for asked in folder.iterdir():
            if asked.suffix != DONE and asked.name not in ending:
                thread = end_thread(asked.name)
                if thread is not None:
                    ending[asked.name] = thread
        for name in [name for name, thread in ending.items() if not thread.is_alive()]:
            del ending[name]
            (folder / name).rename(folder / (name + DONE))


def end_thread(name: str) -> threading.Thread | None:
    """Have a thread raise SystemExit as soon as it runs Python; None if this process has none of that name."""
    for thread in threading.enumerate():
        if thread.name == name and thread.ident is not None:
            number, raised = ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit)
            if ctypes.pythonapi.PyThreadState_SetAsyncExc(number, raised) == 1:
                return thread
    return None
