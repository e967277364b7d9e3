"""Documentation that is true: links resolve, paths of the README's layout exist, what is rendered is current."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.measurement import RESULTS
from rendering import (
    applied_corrections,
    estimate_corrections,
    importance_by_mass,
    kernel_table,
    layer_ahead,
    locality,
    memory_example,
    metrics,
    post_hoc,
    prewarm,
    quality,
    replay,
    residency_bonus,
    results,
)
from rendering.marked_page import fill
from rheo_kernels import reference, triton
from rheo_sglang.cli import main
from rheo_sglang.decode import batch

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = sorted(
    REPOSITORY / name
    for name in subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
)
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def without_code(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them: repeated ones are numbered."""
    found: dict[str, int] = {}
    names = set()
    for heading in re.findall(r"^#+ +(.*?)\s*$", without_code(page), re.MULTILINE):
        text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        name = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        names.add(f"{name}-{found[name]}" if name in found else name)
        found[name] = found.get(name, 0) + 1
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_within_the_repository_resolve(page: Path) -> None:
    broken = []
    for link in LINK.findall(without_code(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def layout() -> list[str]:
    """Paths of the README's layout: a line begins with one, or with several that commas separate."""
    text = (REPOSITORY / "README.md").read_text()
    lines = text.split("## Layout")[1].split("\n\n")[1].splitlines()
    paths, folder = [], ""
    for line in lines:
        found = re.match(r"(    |      )([\w./-]+(?:, [\w./-]+/)*)  *\S", line)
        assert found, line
        if found[1] == "    ":
            folder = found[2]
            paths.append(folder)
        else:
            paths += [folder + name for name in found[2].split(", ")]
    return paths


@pytest.mark.parametrize("path", layout())
def test_a_path_of_the_layout_exists(path: str) -> None:
    assert (REPOSITORY / path).exists()
    assert (REPOSITORY / path).is_dir() == path.endswith("/")


def test_the_layout_names_every_folder_of_the_package_the_kernels_and_the_scripts() -> None:
    named = {path.rstrip("/") for path in layout()}
    for parent in ("rheo_sglang", "kernels/rheo_kernels", "scripts"):
        folders = {str(file.parent.relative_to(REPOSITORY)) for file in (REPOSITORY / parent).glob("*/*.py")}
        assert folders <= named


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_files_that_a_page_names_exist(page: Path) -> None:
    """Code spans that begin with a folder of the repository; results keep the command that they were measured with."""
    names = re.findall(
        r"`((?:rheo_sglang|kernels|scripts|tests|docs|models)/[\w./*-]+?)`", without_code(page)
    )
    assert [name for name in names if not list(REPOSITORY.glob(name))] == []


def kept(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


RENDERED: dict[str, tuple[Path, Callable[[], str]]] = {
    "memory": (memory_example.PAGE, memory_example.example),
    "metrics": (metrics.PAGE, metrics.table),
    **{name: (quality.PAGE, render) for name, render in quality.RENDERED.items()},
    "kernels_gpu": (kernel_table.PAGE, kernel_table.tables_of_results),
    locality.NAME: (locality.PAGE, lambda: locality.tables(kept(locality.NAME))),
    locality.SERVED: (locality.PAGE, lambda: locality.served(kept(locality.SERVED))),
    replay.NAME: (replay.PAGE, lambda: replay.tables(kept(replay.NAME))),
    replay.CODER: (replay.PAGE, lambda: replay.by_length(kept(replay.CODER))),
    post_hoc.NAME: (post_hoc.PAGE, lambda: post_hoc.tables(kept(post_hoc.NAME))),
    prewarm.NAME: (prewarm.PAGE, lambda: prewarm.tables(kept(prewarm.NAME))),
    importance_by_mass.NAME: (
        importance_by_mass.PAGE,
        lambda: importance_by_mass.tables(kept(importance_by_mass.NAME)),
    ),
    applied_corrections.NAME: (
        applied_corrections.PAGE,
        lambda: applied_corrections.tables(applied_corrections.kept()),
    ),
    estimate_corrections.NAME: (
        estimate_corrections.PAGE,
        lambda: estimate_corrections.tables(kept(estimate_corrections.NAME)),
    ),
    residency_bonus.NAME: (residency_bonus.PAGE, lambda: residency_bonus.tables(kept(residency_bonus.NAME))),
    "runners_up": (locality.PAGE, lambda: locality.runners_up(kept("runners_up"))),
    "layer_ahead": (
        layer_ahead.PAGE,
        lambda: layer_ahead.tables(
            {model: kept(f"layer_ahead_{model}") for model in layer_ahead.MODELS}, kept("kernels_gpu")
        ),
    ),
}


@pytest.mark.parametrize("name", RENDERED)
def test_what_is_rendered_is_current(name: str, tmp_path: Path) -> None:
    page, render = RENDERED[name]
    copy = tmp_path / page.name
    copy.write_text(page.read_text())
    fill(copy, name, render())
    assert copy.read_text() == page.read_text()


HELPERS = {"fetch_splits", "num_splits", "tail_splits", "total_programs"}
"""What `rheo_kernels.triton` exports beside kernels."""


def kernel_rows() -> dict[str, str]:
    """Kernels of the table of docs/kernels.md, and what it says of each one's definition."""
    table = kernel_table.PAGE.read_text().split("| kernel | one program per |")[1].split("\n\n")[0]
    return dict(re.findall(r"^\| `(\w+)`[^|]*\| [^|]+ \| ?(.*?) ?\|$", table, re.MULTILINE))


def test_every_kernel_is_in_the_table() -> None:
    assert set(triton.__all__) - HELPERS <= set(kernel_rows())


@pytest.mark.parametrize("kernel", kernel_rows())
def test_a_kernel_has_the_definition_that_the_table_names(kernel: str) -> None:
    text = kernel_rows()[kernel]
    if text.startswith("none:"):
        return
    names = [kernel, *re.findall(r"`(\w+)`", text)]
    assert any(hasattr(reference, name) or hasattr(batch, name) for name in names)


def test_the_results_are_rendered_from_the_files_that_are_kept(tmp_path: Path) -> None:
    assert results.page(plots=tmp_path) == (REPOSITORY / "docs" / "results.md").read_text()


@pytest.mark.parametrize("command", ["serve", "doctor", "report", "top", "eval"])
def test_the_readme_names_every_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert f"rheo {command}" in (REPOSITORY / "README.md").read_text()
    assert re.search(rf"^    {command} ", capsys.readouterr().out, re.MULTILINE)


def test_what_the_readme_says_of_lost_answers_is_in_the_table() -> None:
    quality = (REPOSITORY / "docs" / "quality.md").read_text()
    rendered = quality.partition("<!-- default: start -->")[2].partition("<!-- default: end -->")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in rendered.splitlines() if "|" in line]
    lost = [row for row in rows if row[0].endswith("points from dense")]
    default, conservative = (
        [row[rows[0].index(server)].removeprefix("-") for row in lost]
        for server in ("default", "`conservative` on")
    )
    said = (REPOSITORY / "README.md").read_text().partition("**A budget below 1.0 can lose answers.**")[2]
    assert re.findall(r"\d+\.\d ± \d+\.\d", said)[:6] == [*default, *conservative]
