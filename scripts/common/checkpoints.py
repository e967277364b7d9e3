"""Checkpoint directories that are either whole or absent.

A checkpoint is written beside its final name and renamed into place when it is complete. It carries a
digest of the recipe (script and settings) that made it, so that an outdated checkpoint is made again.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

RECIPE_FILE = "recipe.sha256"
MODELS = Path(__file__).resolve().parents[2] / ".models"


def recipe_digest(script: str, *settings: str) -> str:
    """Digest of the source of `script` (a path) and of the settings it runs with."""
    state = hashlib.sha256(Path(script).read_bytes())
    for setting in settings:
        state.update(b"\0" + setting.encode())
    return state.hexdigest()


def is_current(checkpoint: Path, recipe: str) -> bool:
    """Whether `checkpoint` is complete and was made by the recipe with this digest."""
    marker = checkpoint / RECIPE_FILE
    return marker.is_file() and marker.read_text() == recipe


@contextmanager
def new_checkpoint(checkpoint: Path, recipe: str) -> Iterator[Path]:
    """Yield an empty directory that becomes `checkpoint` when the block ends without an exception.

    Parameters
    ----------
    checkpoint : Path
        Final directory. An earlier checkpoint there is replaced.
    recipe : str
        Digest to store in it, see `recipe_digest`.

    Raises
    ------
    SystemExit
        If the final directory exists and is no checkpoint made here.
    """
    if checkpoint.exists() and not (checkpoint / RECIPE_FILE).is_file() and any(checkpoint.iterdir()):
        raise SystemExit(
            f"{checkpoint} holds files that this script did not write; name an empty or new directory."
        )
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{checkpoint.name}-", dir=checkpoint.parent) as scratch:
        unfinished = Path(scratch) / "checkpoint"
        unfinished.mkdir()
        yield unfinished
        (unfinished / RECIPE_FILE).write_text(recipe)
        if checkpoint.exists():
            shutil.rmtree(checkpoint)
        unfinished.rename(checkpoint)
