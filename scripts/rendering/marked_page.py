"""Parts of a page of the documentation that are generated, between two comments that name them."""

from __future__ import annotations

from pathlib import Path


def fill(page: Path, name: str, content: str) -> None:
    """Put ``content`` between ``<!-- name: start -->`` and ``<!-- name: end -->`` of a page that has both once."""
    start, end = f"<!-- {name}: start -->", f"<!-- {name}: end -->"
    before, rest = page.read_text().split(start)
    _, after = rest.split(end)
    page.write_text(f"{before}{start}\n\n{content}\n\n{end}{after}")
