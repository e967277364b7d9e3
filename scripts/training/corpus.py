"""The training corpus: real text from three sources, tokenised once, and the text held out for evaluation."""

import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from tokenizers import Tokenizer

from common.austen import load_novels
from rheo_sglang.evaluation.haystack import documentation_text
from training.tokenizer import DOCUMENT_TOKEN, train_tokenizer

HELD_OUT_NOVEL = "persuasion"
_SKIPPED_PACKAGES = {"site-packages", "dist-packages", "pydoc_data", "encodings"}


@dataclass(frozen=True)
class Corpus:
    """Tokenised training text and what evaluation needs.

    Attributes
    ----------
    tokenizer
        The model's tokenizer.
    sources
        Tokens of each source, uint16 ``[tokens]``, by name.
    held_out
        Text for evaluation, of which no line is in `sources`.
    """

    tokenizer: Tokenizer
    sources: dict[str, np.ndarray]
    held_out: str


def library_sources() -> str:
    """Sources of the running Python's standard library, tests included and tables left out, in path order."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = sorted(
        path for path in root.rglob("*.py") if not _SKIPPED_PACKAGES & set(path.relative_to(root).parts)
    )
    return "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in paths)


def build_corpus(folder: Path) -> None:
    """Gather the texts, train the tokenizer and save everything that training reads into `folder`.

    Writes ``tokenizer.json``, ``corpus.npz`` and ``held_out.txt``. Needs Debian's ``apt-get`` the first time,
    for the novels (see `austen`), which are kept in ``novels/``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    novels = load_novels(folder / "novels")
    held_out = novels.pop(HELD_OUT_NOVEL)
    texts = {
        "novels": "\n".join(novels.values()),
        "library": library_sources(),
        "documentation": documentation_text(held_out=False),
    }
    tokenizer = train_tokenizer(texts.values())
    tokenizer.save(str(folder / "tokenizer.json"))
    sources = {
        name: np.asarray(tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.uint16)
        for name, text in texts.items()
    }
    np.savez(folder / "corpus.npz", **cast(dict[str, Any], sources))
    (folder / "held_out.txt").write_text(held_out, encoding="utf-8")


def load_corpus(folder: Path) -> Corpus:
    """Load the corpus from `folder`, building it the first time."""
    if not (folder / "corpus.npz").exists():
        build_corpus(folder)
    with np.load(folder / "corpus.npz") as archive:
        sources = {name: archive[name] for name in archive.files}
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return Corpus(tokenizer, sources, (folder / "held_out.txt").read_text(encoding="utf-8"))


def document_token(tokenizer: Tokenizer) -> int:
    """Id of the token that starts every document."""
    token = tokenizer.token_to_id(DOCUMENT_TOKEN)
    if token is None:
        raise ValueError(f"the tokenizer has no {DOCUMENT_TOKEN} token; build the corpus anew")
    return int(token)
