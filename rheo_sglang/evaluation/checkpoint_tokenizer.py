"""The tokenizer of a checkpoint, and whether it has a chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def load_tokenizer(name: str) -> Tokenizer:
    """Load a fast tokenizer from a checkpoint folder, or from the hub when there is no such folder.

    Raises
    ------
    ValueError
        If there is none.
    """
    from tokenizers import Tokenizer

    path = Path(name)
    try:
        return (
            Tokenizer.from_file(str(path / "tokenizer.json"))
            if path.is_dir()
            else Tokenizer.from_pretrained(name)
        )
    except Exception as error:
        raise ValueError(
            f"no tokenizer.json for {name!r} ({error}); name the checkpoint's folder with --tokenizer"
        ) from error


def has_chat_template(name: str) -> bool:
    """Whether a checkpoint folder brings a chat template; of a hub name it is taken for granted."""
    path = Path(name)
    if not path.is_dir():
        return True
    config = path / "tokenizer_config.json"
    return bool(
        [*path.glob("chat_template.*")]
        or (config.exists() and json.loads(config.read_text(encoding="utf-8")).get("chat_template"))
    )
