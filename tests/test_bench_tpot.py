"""The benchmark of times per token: a variant is compared with fa3 of its kind and with the default."""

from __future__ import annotations

import pytest

from benchmarks.tpot import ENGINES, VARIANTS, ratios


def times(**milliseconds: float) -> dict[str, dict[str, float]]:
    return {label: {"tpot_ms": value} for label, value in milliseconds.items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_is_measured_of_both_engines_with_the_same_arguments(variant: str) -> None:
    dense, ours = ENGINES[f"fa3{variant}"], ENGINES[f"default{variant}"]
    assert dense.config is None and ours.config == {}
    assert dense.arguments == ours.arguments == VARIANTS[variant] != {}
    assert dense.groups == ours.groups == ENGINES["default"].groups


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variants_ratio_is_to_fa3_of_that_variant_and_what_it_changes_to_the_default(variant: str) -> None:
    name = variant.replace("-", "_")
    found = ratios(
        {
            "fa3": times(**{"128k_bs1": 10.0}),
            f"fa3{variant}": times(**{"128k_bs1": 8.0}),
            "default": times(**{"128k_bs1": 5.0}),
            f"default{variant}": times(**{"128k_bs1": 4.0}),
        }
    )
    assert found[f"tpot_ratio_128k_bs1_resident_default{name}"] == 0.5
    assert found[f"tpot{name}_over_default_128k_bs1"] == 0.8
    assert found["tpot_ratio_128k_bs1_resident_default"] == 0.5
    others = {one.replace("-", "_") for one in VARIANTS if one != variant}
    assert not [key for key in found if any(other in key for other in others)]


def test_a_variant_whose_fa3_was_not_measured_has_no_ratio_to_the_others() -> None:
    found = ratios({"fa3": times(**{"2k_bs1": 10.0}), "default-fp8": times(**{"2k_bs1": 4.0})})
    assert found == {}
