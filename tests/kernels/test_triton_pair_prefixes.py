"""pair_prefixes finds the reference's pairs, and what a pair shares is shared."""

from __future__ import annotations

import pytest
import torch

from rheo_kernels import reference
from rheo_kernels.types import PrefixPairs
from rheo_kernels.types.estimates import PAGES_PER_BLOCK

PAGE_SIZE = 16


def tree_lists(paths: list[list[tuple[str, int]]], rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Page lists and tokens of requests whose paths in a radix tree are given, as nodes and the pages of each."""
    sizes = {node: count for path in paths for node, count in path}
    numbers = iter((torch.randperm(sum(sizes.values()), generator=rng, device=rng.device) + 1).tolist())
    pages = {node: [next(numbers) for _ in range(count)] for node, count in sizes.items()}
    lists = [[page for node, _ in path for page in pages[node]] for path in paths]
    width = max(map(len, lists)) + 3
    table = torch.randint(0, 2**30, (len(lists), width), generator=rng, device=rng.device)
    for row, listed in enumerate(lists):
        table[row, : len(listed)] = torch.tensor(listed, device=rng.device)
    tokens = torch.tensor([len(listed) * PAGE_SIZE for listed in lists], device=rng.device)
    return table.int(), tokens


def pair(pages: torch.Tensor, seq_lens: torch.Tensor) -> PrefixPairs:
    from rheo_kernels import triton as kernels

    batch = len(pages)
    scratch = torch.full((batch * (batch + 1),), -7, dtype=torch.int32, device=pages.device)
    out = PrefixPairs(*(torch.full_like(field, -9) for field in PrefixPairs.allocate(batch, pages.device)))
    return kernels.pair_prefixes(pages, seq_lens, PAGE_SIZE, scratch, out)


def check(pages: torch.Tensor, seq_lens: torch.Tensor) -> PrefixPairs:
    found, expected = pair(pages, seq_lens), reference.pair_prefixes(pages, seq_lens, PAGE_SIZE)
    assert found.partner.tolist() == expected.partner.tolist()
    assert found.units.tolist() == expected.units.tolist()
    for one, other in enumerate(found.partner.tolist()):
        if other < 0:
            assert found.units[one] == 0
            continue
        shared = int(found.units[one]) * PAGES_PER_BLOCK
        assert found.partner[other] == one and found.units[other] == found.units[one] and one != other
        assert 0 < shared * PAGE_SIZE <= min(seq_lens[one], seq_lens[other])
        assert torch.equal(pages[one, :shared], pages[other, :shared])
    return found


SYSTEM = ("system", 9)


def document(name: str, question: str, pages: int = 40) -> list[tuple[str, int]]:
    return [SYSTEM, (name, pages), (name + question, 5)]


def test_questions_about_one_document_are_paired_whatever_else_is_there(rng: torch.Generator) -> None:
    """All share the system prompt, and one document has a single question: nobody is paired with the wrong one."""
    names = ["a1", "b1", "c1", "b2", "d1", "c2", "d2"]
    found = check(*tree_lists([document(name[0], name[1]) for name in names], rng))
    partners = {names[one]: names[other] for one, other in enumerate(found.partner.tolist()) if other >= 0}
    assert partners == {"b1": "b2", "b2": "b1", "c1": "c2", "c2": "c1", "d1": "d2", "d2": "d1"}
    assert found.units[1] == 49 // PAGES_PER_BLOCK


@pytest.mark.parametrize("requests", [1, 2, 3, 32])
def test_one_document(requests: int, rng: torch.Generator) -> None:
    found = check(*tree_lists([document("a", str(number)) for number in range(requests)], rng))
    assert int((found.partner >= 0).sum()) == requests // 2 * 2


def test_lists_without_a_common_unit_are_left_alone(rng: torch.Generator) -> None:
    paths = [[("short", PAGES_PER_BLOCK - 1), (name, 20)] for name in "abc"]
    found = check(*tree_lists([*paths, [("alone", 30)]], rng))
    assert found.partner.tolist() == [-1] * 4


def test_a_page_that_is_not_full_is_nobody_elses(rng: torch.Generator) -> None:
    pages, seq_lens = tree_lists([[("same", 2 * PAGES_PER_BLOCK)]] * 2, rng)
    assert check(pages, seq_lens).units.tolist() == [2, 2]
    assert check(pages, seq_lens - torch.tensor([0, 1], device=rng.device)).units.tolist() == [1, 1]
    assert check(pages, seq_lens.int() * torch.tensor([1, 0], device=rng.device).int()).partner.tolist() == [
        -1,
        -1,
    ]


@pytest.mark.parametrize("seed", range(12))
def test_random_trees(seed: int, rng: torch.Generator) -> None:
    """Trees of up to three levels, requests that end in any node, lengths within it, and padding."""
    choice = torch.Generator().manual_seed(seed)

    def number(most: int) -> int:
        return int(torch.randint(0, most, (), generator=choice))

    sizes: dict[str, int] = {}
    paths = []
    for _ in range(1 + number(24)):
        name, path = "", []
        for _ in range(1 + number(3)):
            name += "abc"[number(3)]
            path.append((name, sizes.setdefault(name, 1 + number(30))))
        paths.append(path)
    pages, seq_lens = tree_lists(paths, rng)
    for row in range(len(paths)):
        seq_lens[row] -= number(PAGE_SIZE) if number(2) else 0
        if number(8) == 0:
            seq_lens[row] = 0
    check(pages, seq_lens)
