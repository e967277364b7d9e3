"""Jane Austen's six novels as text, read out of Debian's r-cran-janeaustenr package without R.

    PYTHONPATH=scripts python -m common.austen --out novels/
    PYTHONPATH=scripts python -m common.austen --out novels/ --rdb Rdata.rdb

The novels are in the public domain. The package stores them in R's lazy-load format: a file of
independently compressed objects, each serialised as big-endian XDR ("R Internals", section 1.8). Needs
``apt-get`` and ``dpkg-deb`` unless ``--rdb`` names an unpacked file.
"""

import argparse
import bz2
import lzma
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "r-cran-janeaustenr"
RDB_IN_PACKAGE = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"

_STRSXP = 16
_NA_LENGTH = -1
_FEWEST_LINES_OF_A_NOVEL = 1000


def decompress_objects(raw: bytes) -> Iterator[bytes]:
    """Decompress every object of a lazy-load database.

    Parameters
    ----------
    raw
        Contents of an ``.rdb`` file. Each object is a 4-byte uncompressed length followed by a zlib stream,
        or by a type byte (``Z`` for LZMA2, ``2`` for bzip2) and that stream.

    Yields
    ------
    bytes
        One serialised R object, in file order.
    """
    position = 0
    while position + 5 < len(raw):
        kind = raw[position + 4 : position + 5]
        stream = raw[position + 5 :]
        if kind == b"Z":
            lzma_stream = lzma.LZMADecompressor(
                format=lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": 9}]
            )
            content, rest = lzma_stream.decompress(stream), lzma_stream.unused_data
        elif kind == b"2":
            bzip2_stream = bz2.BZ2Decompressor()
            content, rest = bzip2_stream.decompress(stream), bzip2_stream.unused_data
        else:
            zlib_stream = zlib.decompressobj()
            content, rest = zlib_stream.decompress(raw[position + 4 :]), zlib_stream.unused_data
        position = len(raw) - len(rest)
        yield content


def read_character_vector(serialised: bytes) -> list[str] | None:
    """Read a serialised R character vector.

    Parameters
    ----------
    serialised
        One object in R's XDR serialisation, version 2 or 3.

    Returns
    -------
    list of str or None
        The strings, with R's NA read as the empty string; None when the object is no character vector.
    """
    position = 14
    (version,) = struct.unpack_from(">i", serialised, 2)
    if version == 3:
        (encoding_length,) = struct.unpack_from(">i", serialised, position)
        position += 4 + encoding_length
    flags, count = struct.unpack_from(">ii", serialised, position)
    if flags & 0xFF != _STRSXP:
        return None
    position += 8
    strings = []
    for _ in range(count):
        _, length = struct.unpack_from(">ii", serialised, position)
        position += 8
        if length == _NA_LENGTH:
            strings.append("")
            continue
        strings.append(serialised[position : position + length].decode("utf-8"))
        position += length
    return strings


def read_rdb(path: Path) -> dict[str, str]:
    """Read the novels from an unpacked ``Rdata.rdb``.

    Returns
    -------
    dict of str to str
        Text by file-name-safe title, such as ``pride_and_prejudice``.

    Raises
    ------
    ValueError
        When the file holds no novel.
    """
    novels = {}
    for serialised in decompress_objects(path.read_bytes()):
        lines = read_character_vector(serialised)
        if lines and len(lines) > _FEWEST_LINES_OF_A_NOVEL:
            title = lines[0].strip().lower().replace(" ", "_").replace("&", "and")
            novels[title] = "\n".join(lines)
    if not novels:
        raise ValueError(f"{path}: no novel in it; expected {RDB_IN_PACKAGE} of the package {PACKAGE}")
    return novels


def download_novels() -> dict[str, str]:
    """Download the Debian package with ``apt-get`` and read the novels from it.

    Raises
    ------
    RuntimeError
        When the package cannot be downloaded or unpacked.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            subprocess.run(
                ["apt-get", "-q", "download", PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL
            )
            (package,) = Path(folder).glob("*.deb")
            subprocess.run(["dpkg-deb", "-x", str(package), folder], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise RuntimeError(
                f"cannot fetch {PACKAGE} with apt-get and dpkg-deb ({error}); pass --rdb"
            ) from error
        return read_rdb(Path(folder) / RDB_IN_PACKAGE)


def save_novels(novels: dict[str, str], folder: Path) -> None:
    """Write one ``TITLE.txt`` a novel into `folder`, which is created."""
    folder.mkdir(parents=True, exist_ok=True)
    for title, text in novels.items():
        (folder / f"{title}.txt").write_text(text, encoding="utf-8")


def load_novels(cache_dir: str | Path) -> dict[str, str]:
    """Load the novels from a folder, downloading them into it the first time.

    Parameters
    ----------
    cache_dir
        Folder of ``TITLE.txt`` files; filled when it holds none.

    Returns
    -------
    dict of str to str
        Text by title, in title order.
    """
    folder = Path(cache_dir)
    if not any(folder.glob("*.txt")):
        save_novels(download_novels(), folder)
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.txt"))}


def main(arguments: list[str] | None = None) -> int:
    """Write the novels to ``--out`` and print the size of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for one .txt file a novel")
    parser.add_argument("--rdb", type=Path, help="unpacked Rdata.rdb; downloaded with apt-get when not given")
    options = parser.parse_args(arguments)
    try:
        novels = read_rdb(options.rdb) if options.rdb else download_novels()
    except (OSError, RuntimeError, ValueError) as error:
        print(f"austen: {error}", file=sys.stderr)
        return 1
    save_novels(novels, options.out)
    for title, text in novels.items():
        print(f"{title}: {len(text)} characters")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
