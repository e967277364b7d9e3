"""Both engines over one trace: the same selection, hits and output, the same pages resident afterwards."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from engine_pair import Pair, check, config_of
from engine_server import PAGES
from triton_cases import GPU

from rheo_kernels.types import KVScales, Selected
from rheo_kernels.types.kv_scales import EIGHT_BITS
from rheo_sglang.budget import BudgetSettings
from rheo_sglang.config import RheoConfig
from rheo_sglang.decode.cuda_attention import CudaAttention
from rheo_sglang.request_settings import read_settings
from rheo_sglang.selection import SUMMARIES, EstimatingSummary
from rheo_sglang.tiering import POLICIES


@pytest.mark.parametrize(
    ("summary", "tail", "miss_mode"),
    [
        ("subcentroids4", True, "split"),
        ("subcentroids4", False, "fetch"),
        *(
            (name, True, "fetch")
            for name in SUMMARIES.names()
            if issubclass(SUMMARIES[name], EstimatingSummary)
        ),
    ],
)
def test_triton_attends_what_is_left_out_as_the_reference_does(
    summary: str, tail: bool, miss_mode: str, rng: torch.Generator
) -> None:
    planned = miss_mode == "split"
    config = config_of(
        "importance", summary=summary, tail=tail, miss_mode=miss_mode, plan_decode_buffers=planned
    )
    pair = Pair(config, 10, rng.device, torch.float32, runners_up=0, padding=1)
    check(pair, "importance")


@pytest.mark.parametrize(
    ("summary", "miss_mode", "dense"),
    [("bound", "fetch", 0), ("bound", "split", 0), ("bound", "fetch", 1 << 20)],
)
def test_triton_attends_eight_bits_with_a_layers_scales_as_the_reference_does(
    summary: str, miss_mode: str, dense: int, rng: torch.Generator
) -> None:
    config = replace(config_of("importance", summary=summary, miss_mode=miss_mode), dense_threshold=dense)
    scales = [KVScales(0.75, 2.5), KVScales(1.0, 0.3)]
    pair = Pair(config, 10, rng.device, EIGHT_BITS, 0, 1, compute_dtype=torch.float32, scales=scales)
    for number in range(2):
        pair.step(number)
        pair.check_outputs()
        if not dense:
            pair.check_selections()
        pair.align()


@pytest.mark.parametrize(("summary", "planned"), [("subcentroids2", True), ("subcentroids4", False)])
def test_cuda_attends_what_is_left_out_as_the_reference_does(
    summary: str, planned: bool, rng: torch.Generator, cuda_kernels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the workspaces share their memory."""
    if not GPU:
        monkeypatch.setattr("rheo_sglang.decode.gpu_engine.make_attention", CudaAttention)
    config = config_of("importance", summary=summary, miss_mode="fetch", plan_decode_buffers=planned)
    pair = Pair(config, 16, rng.device, torch.bfloat16, runners_up=PAGES, padding=1)
    check(pair, "importance")


def test_cuda_attends_eight_bits_with_a_layers_scales_as_the_reference_does(
    rng: torch.Generator, cuda_kernels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is left out with them, which runners-up are a part of."""
    if not GPU:
        monkeypatch.setattr("rheo_sglang.decode.gpu_engine.make_attention", CudaAttention)
    config = config_of("importance", summary="subcentroids4", miss_mode="fetch")
    scales = [KVScales(0.75, 2.5), KVScales(1.0, 0.3)]
    storage = {"compute_dtype": torch.bfloat16, "scales": scales}
    pair = Pair(config, 16, rng.device, EIGHT_BITS, PAGES, padding=1, **storage)
    assert isinstance(pair.gpu.engine.attention, CudaAttention)
    assert check(pair, "importance") > 0, "no runner-up got a frame"


@pytest.mark.parametrize("language", ["triton", "cuda"])
def test_both_engines_prefer_pages_with_a_frame_alike(
    language: str, rng: torch.Generator, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they attend, cover and make resident, importance by scores without the bonus among it."""
    cuda = language == "cuda"
    if cuda:
        request.getfixturevalue("cuda_kernels")
        if not GPU:
            monkeypatch.setattr("rheo_sglang.decode.gpu_engine.make_attention", CudaAttention)
    config, floored = favouring(0.3)
    dtype = torch.bfloat16 if cuda else torch.float32
    pair = Pair(config, 16 if cuda else 10, rng.device, dtype, PAGES if cuda else 0, padding=1)
    for server in pair.servers:
        server.engine.budget.assign([3], [floored])
    check(pair, "importance")


@pytest.mark.parametrize("language", ["triton", "cuda"])
def test_both_engines_select_by_corrected_estimates_alike(
    language: str, rng: torch.Generator, request: pytest.FixtureRequest
) -> None:
    if language == "cuda":
        request.getfixturevalue("cuda_kernels")
    config = config_of("importance", summary="subcentroids4", miss_mode="fetch", calibrate=True)
    pair = Pair(config, 10, rng.device, torch.bfloat16 if language == "cuda" else torch.float32, runners_up=0)
    codes = torch.zeros(0)
    for server in pair.servers:
        calibration = server.engine.prefill.calibration
        assert calibration is not None
        codes = codes if codes.numel() else torch.randint(-48, 49, calibration.codes.shape).to(torch.int8)
        calibration.codes.copy_(codes)
    pair.align()
    pair.step(0)
    pair.check_selections()
    corrected = [found.indices for found in pair.selections[pair.reference]]
    calibration = pair.reference.engine.prefill.calibration
    assert calibration is not None
    calibration.codes.zero_()
    plain = Pair(config, 10, rng.device, torch.float32, runners_up=0)
    plain.step(0, (plain.reference,))
    selected = [found.indices for found in plain.selections[plain.reference]]
    assert not all(torch.equal(one, other) for one, other in zip(corrected, selected, strict=True))


def favouring(bonus: float) -> tuple[RheoConfig, BudgetSettings]:
    """Settings with a bonus, and those of a request with a floor."""
    common = {"summary": "subcentroids4", "miss_mode": "fetch", "request_limit_ratio": 0.6}
    config = config_of("importance", residency_bonus=bonus, **common)
    floored = read_settings({"rheo": {"budget_coverage": 0.5, "budget_limit_ratio": 0.6}}, config)
    assert floored is not None
    return config, floored


def test_a_bonus_selects_what_has_a_frame_except_for_requests_with_a_floor(rng: torch.Generator) -> None:
    """The reference engine; the GPU's selects as it does, see above. In the first step nothing has a frame."""
    found: list[list[Selected]] = []
    for bonus in (0.0, 100.0):
        config, floored = favouring(bonus)
        pair = Pair(config, 10, rng.device, torch.float32, runners_up=0)
        pair.reference.engine.budget.assign([3], [floored])
        for number in range(2):
            pair.align()
            pair.step(number, (pair.reference,))
        found.append(pair.selections[pair.reference])
    for plain, favoured in zip(*found, strict=True):
        assert torch.equal(plain.num_selected, favoured.num_selected)
        assert torch.equal(plain.indices[2], favoured.indices[2]), "a request with a floor"
        assert (favoured.num_hits >= plain.num_hits).all()
    assert sum(int((two.num_hits - one.num_hits).sum()) for one, two in zip(*found, strict=True)) > 0


@pytest.mark.parametrize(
    ("policy", "miss_mode"),
    [
        ("importance", "split"),
        *((policy, "fetch") for policy in sorted(POLICIES.names())),
        *(
            pytest.param(policy, "split", marks=pytest.mark.full)
            for policy in sorted(set(POLICIES.names()) - {"importance"})
        ),
    ],
)
def test_triton_leaves_the_same_pages_resident(policy: str, miss_mode: str, rng: torch.Generator) -> None:
    """Triton's selection lists no runners-up. There are frames for all misses, though not for all pages."""
    pair = Pair(config_of(policy, miss_mode=miss_mode), 10, rng.device, torch.float32, runners_up=0)
    assert check(pair, policy) == 0


@pytest.mark.parametrize("policy", sorted(POLICIES.names()))
def test_cuda_leaves_the_same_pages_resident_and_offers_runners_up_frames(
    policy: str, rng: torch.Generator, cuda_kernels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are frames for more pages than a step selects, and for all that it offers frames.

    A GPU looks at no more candidates than there are frames, misses first, and may leave out runners-up of the last
    requests that are worth more than others'.
    """
    if not GPU:
        monkeypatch.setattr("rheo_sglang.decode.gpu_engine.make_attention", CudaAttention)
    pair = Pair(config_of(policy, miss_mode="fetch"), 16, rng.device, torch.bfloat16, runners_up=PAGES)
    assert check(pair, policy) > 0, "no runner-up got a frame"
