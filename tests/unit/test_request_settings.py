"""Settings of a request: read within the server's limits, refused in one sentence, before anything of it is run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import HTTPException

from rheo_sglang import compat
from rheo_sglang.budget import BudgetSettings
from rheo_sglang.config import ENVIRONMENT, ConfigError, RheoConfig
from rheo_sglang.hooks.requests import check_request, check_stream, read_request
from rheo_sglang.request_settings import brings_settings, check_parameters, read_settings

SERVER = RheoConfig(budget_ratio=0.1, budget_min_pages=8, budget_max_pages=400, request_budget_ratio=0.3)


def read(values: Any, config: RheoConfig = SERVER) -> BudgetSettings:
    return read_settings({"rheo": values, "thinking_budget": 7}, config)


def test_what_a_request_does_not_name_is_the_servers() -> None:
    assert read({}) == SERVER.budget_settings()
    assert read({"budget_ratio": 0.3}) == BudgetSettings(Fraction(3, 10), 8, 400)
    assert read({"budget_min_pages": 1, "budget_max_pages": 1}) == BudgetSettings(Fraction(1, 10), 1, 1)


def test_a_whole_number_is_a_ratio_too() -> None:
    config = RheoConfig(budget_ratio=0.1, request_budget_ratio=1.0, dense_threshold=0)
    assert read({"budget_ratio": 1}, config).ratio == 1


GROWING = dataclasses.replace(SERVER, request_limit_ratio=0.5)


def floor_and_limit(settings: BudgetSettings) -> tuple[float, Fraction]:
    return settings.floor, settings.limit_ratio


def test_a_request_may_have_a_floor_and_a_limit_of_its_own() -> None:
    assert floor_and_limit(GROWING.budget_settings()) == (0, 0), "the server's own requests have none"
    assert floor_and_limit(read({}, GROWING)) == (0, 0)
    assert read({"budget_ratio": 0.2}, GROWING) == read({"budget_ratio": 0.2})
    assert floor_and_limit(read({"budget_coverage": 0.7}, GROWING)) == (0.7, Fraction(1, 4))
    limited = {"budget_coverage": 0.7, "budget_limit_ratio": 0.5}
    assert floor_and_limit(read(limited, GROWING)) == (0.7, Fraction(1, 2))
    assert floor_and_limit(read({"budget_limit_ratio": 0.5}, GROWING)) == (0, 0), "nothing to raise it"


@pytest.mark.parametrize(("mode", "floor"), [("on", 0.9), (0.75, 0.75), (1, 1.0)])
def test_conservative_requests_are_limited_by_the_server_alone(mode: str | float, floor: float) -> None:
    assert floor_and_limit(read({"conservative": mode}, GROWING)) == (floor, Fraction(1, 2))
    both = {"conservative": mode, "budget_coverage": 0.8, "budget_limit_ratio": 0.3}
    assert floor_and_limit(read(both, GROWING)) == (max(floor, 0.8), Fraction(1, 2))
    assert read({"conservative": "off"}, GROWING) == GROWING.budget_settings()


def test_a_server_with_a_floor_lets_requests_choose_within_its_limit() -> None:
    covering = dataclasses.replace(SERVER, budget="coverage", budget_limit_ratio=0.3)
    assert floor_and_limit(read({"budget_coverage": 0.5}, covering)) == (0.5, Fraction(3, 10))
    assert floor_and_limit(read({"conservative": 0.95}, covering)) == (0.95, Fraction(3, 10))
    careful = dataclasses.replace(SERVER, conservative="on")
    assert floor_and_limit(read({"conservative": 1}, careful)) == (1, 1)
    assert floor_and_limit(read({"conservative": "off"}, careful)) == (0, 0)


@pytest.mark.parametrize(
    ("values", "allowed"),
    [
        ({"conservative": "on"}, "off on this server, which has no request_limit_ratio"),
        ({"conservative": 0.5}, "off on this server, which has no request_limit_ratio"),
        ({"budget_coverage": 0.5}, "not given on this server, which has no request_limit_ratio"),
        ({"budget_limit_ratio": 0.1}, "not given on this server, which has no request_limit_ratio"),
        ({"conservative_margin": 0.1}, "not given on this server, which has no conservative_margin"),
    ],
)
def test_no_request_has_a_floor_where_the_server_does_not_allow_one(values: dict, allowed: str) -> None:
    ((name, value),) = values.items()
    with pytest.raises(ConfigError) as refused:
        read(values)
    assert str(refused.value) == f"custom_params.rheo: {name}={value!r} is not supported; allowed: {allowed}"
    read(values, dataclasses.replace(GROWING, conservative_margin=0))
    assert read({"conservative": "off"}) == SERVER.budget_settings()


def test_a_request_may_have_a_margin_where_margins_are_noted() -> None:
    noted = dataclasses.replace(SERVER, conservative_margin=0)
    own = noted.budget_settings()
    assert (own.margin, own.limit_ratio, own.floor) == (0, Fraction(1, 4), 0)
    found = read({"conservative_margin": 0.5}, noted)
    assert (found.margin, found.limit_ratio, found.floor) == (0.5, Fraction(1, 4), 0)
    wider = dataclasses.replace(noted, request_limit_ratio=0.5)
    assert read({"conservative_margin": 1, "budget_limit_ratio": 0.5}, wider).limit_ratio == Fraction(1, 2)
    asking = dataclasses.replace(SERVER, conservative_margin=0.3, budget_limit_ratio=0.4)
    assert read({}, asking).margin == 0.3
    assert read({"conservative_margin": 0}, asking).margin == 0
    assert read({"conservative_margin": None}, asking).margin == 0
    for value, sentence in (
        (-0.1, r"conservative_margin=-0.1 is not supported; allowed: at least 0$"),
        ("0.1", r"conservative_margin='0.1' is not supported; allowed: a finite number$"),
    ):
        with pytest.raises(ConfigError, match=rf"^custom_params\.rheo: {sentence}"):
            read({"conservative_margin": value}, asking)
    with pytest.raises(ConfigError, match="allowed: off on this server, which has no request_limit_ratio"):
        read({"conservative": "on"}, asking)


@pytest.mark.parametrize("ratio", [None, 0.5])
def test_requests_may_only_grow_where_something_may_raise_a_budget(ratio: float | None) -> None:
    config = dataclasses.replace(SERVER, request_limit_ratio=ratio)
    table = config.budget_table(16, 1000, requests=2)
    assert table.reads_scores == config.budgets_grow == (ratio is not None)
    widest = table.width(1000)
    assert widest == (500 if ratio else 300)
    if ratio:
        table.assign([1], [read({"conservative": "on", "budget_ratio": 0.3}, config)])
        row = int(table.tensors.setting_of[1])
        assert table.tensors.limits[row, 1000] == widest
        assert table.tensors.floors.tolist()[row] == pytest.approx(0.9)
        assert table.tensors.limits[0].tolist() == table.caps.tolist(), "the server's own do not grow"


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ([0.1], r"custom_params: rheo=\[0.1\] is not supported; allowed: an object of settings"),
        (
            {"budget": 0.1},
            r"custom_params.rheo: unknown key 'budget'=0.1; allowed keys: budget_ratio, budget_min",
        ),
        ({"policy": "lru"}, r"custom_params.rheo: unknown key 'policy'='lru'; allowed keys: budget_ratio"),
        ({"budget_ratio": "0.1"}, r"custom_params.rheo: budget_ratio='0.1' is .*; allowed: a finite number"),
        (
            {"budget_ratio": None},
            r"custom_params.rheo: budget_ratio=None is not supported; allowed: a finite number",
        ),
        (
            {"budget_ratio": True},
            r"custom_params.rheo: budget_ratio=True is not supported; allowed: a finite number",
        ),
        (
            {"budget_ratio": float("nan")},
            r"custom_params.rheo: budget_ratio=nan is .*; allowed: a finite number",
        ),
        (
            {"budget_ratio": 0},
            r"custom_params.rheo: budget_ratio=0.0 is not supported; allowed: above 0, at most 0.3",
        ),
        ({"budget_ratio": 0.31}, r"budget_ratio=0.31 is .*; allowed: above 0, at most 0.3 on this server"),
        (
            {"budget_min_pages": 2.5},
            r"custom_params.rheo: budget_min_pages=2.5 is .*; allowed: a whole number",
        ),
        (
            {"budget_min_pages": 0},
            r"custom_params.rheo: budget_min_pages=0 is not supported; allowed: 1 to",
        ),
        (
            {"budget_min_pages": 9},
            r"custom_params.rheo: budget_min_pages=9 is .*; allowed: 1 to 8 on this server",
        ),
        (
            {"budget_max_pages": 401},
            r"budget_max_pages=401 is not supported; allowed: at most 400 on this server",
        ),
        ({"budget_max_pages": None}, r"budget_max_pages=None is not supported; allowed: at most 400 on this"),
        (
            {"budget_max_pages": 7},
            r"budget_max_pages=7 is not supported; allowed: at least budget_min_pages=8",
        ),
        (
            {"request_budget_ratio": 1.0},
            r"custom_params.rheo: unknown key 'request_budget_ratio'=1.0; allowed",
        ),
        ({"request_limit_ratio": 1.0}, r"custom_params.rheo: unknown key 'request_limit_ratio'=1.0; allowed"),
    ],
)
def test_a_bad_value_is_refused_in_one_sentence(values: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as refused:
        read(values)
    assert "\n" not in str(refused.value)
    assert "--rheo-config" not in str(refused.value)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"budget_coverage": 0}, r"budget_coverage=0.0 is not supported; allowed: above 0, at most 1$"),
        ({"budget_coverage": "on"}, r"budget_coverage='on' is not supported; allowed: a finite number$"),
        ({"budget_coverage": None}, r"budget_coverage=None is not supported; allowed: a finite number$"),
        ({"conservative": 1.5}, r"conservative=1.5 is not supported; allowed: above 0, at most 1$"),
        ({"conservative": True}, r"conservative=True is not supported; allowed: off, on, a number$"),
        ({"conservative": None}, r"conservative=None is not supported; allowed: off, on, a number$"),
        (
            {"budget_limit_ratio": 0.6},
            r"budget_limit_ratio=0.6 is .*; allowed: above 0, at most 0.5 on this server$",
        ),
    ],
)
def test_a_bad_floor_mode_or_limit_is_refused_in_one_sentence(values: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=rf"^custom_params\.rheo: {sentence}"):
        read(values, GROWING)


def test_requests_may_ask_for_no_more_than_the_server_gives_unless_it_says_so() -> None:
    config = RheoConfig(budget_ratio=0.1, budget_min_pages=8)
    assert read({"budget_ratio": 0.1, "budget_min_pages": 8}, config) == config.budget_settings()
    for more in ({"budget_ratio": 0.11}, {"budget_min_pages": 9}):
        with pytest.raises(ConfigError, match="on this server"):
            read(more, config)


def test_a_server_that_attends_all_pages_takes_no_settings() -> None:
    with pytest.raises(ConfigError, match="attends all pages of every request; allowed: no settings, unless"):
        read({"budget_ratio": 0.1}, RheoConfig(budget_ratio=1.0))
    assert read({"budget_ratio": 0.1}, RheoConfig(budget_ratio=1.0, dense_threshold=4096)).ratio == Fraction(
        1, 10
    )


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"request_budget_ratio": 0.05},
            r"request_budget_ratio=0.05 is .*; allowed: at least 0.1, at most 1",
        ),
        ({"request_budget_ratio": 1.5}, r"request_budget_ratio=1.5 is .*; allowed: at least 0.1, at most 1"),
        (
            {"request_budget_min_pages": 4},
            r"request_budget_min_pages=4 is .*; allowed: at least 8, at most 400",
        ),
        ({"request_budget_min_pages": 500}, r"request_budget_min_pages=500 is .*; at least 8, at most 400"),
        ({"request_limit_ratio": 1.5}, r"request_limit_ratio=1.5 is .*; allowed: above 0, at most 1"),
    ],
)
def test_limits_below_the_servers_own_budget_stop_the_start(settings: dict, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence.replace("; at", "; allowed: at")):
        RheoConfig(budget_ratio=0.1, budget_min_pages=8, budget_max_pages=400, **settings)


@pytest.mark.parametrize(
    "custom_params", [None, {}, {"thinking_budget": 3}, {"rheo": None}, "rheo", ["rheo"]]
)
def test_requests_without_settings_are_left_alone(
    custom_params: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENT, "not even read")
    assert not brings_settings(custom_params)
    check_parameters({"custom_params": custom_params}, None)
    check_parameters([{"custom_params": custom_params}, {}], {"temperature": 0})
    check_parameters(None, None)


BAD = {"custom_params": {"rheo": {"budget_ratio": 2}}}
GOOD = {"custom_params": {"rheo": {"budget_ratio": 0.01}}}


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the hooks read of SGLang's tokenizer manager, and of its scheduler."""
    monkeypatch.setenv(ENVIRONMENT, "{}")
    return SimpleNamespace(
        server_args=SimpleNamespace(attention_backend="rheo"),
        preferred_sampling_params=None,
        model_config=SimpleNamespace(vocab_size=100),
    )


@pytest.mark.parametrize("parameters", [BAD, [GOOD, BAD], [{}, GOOD, BAD, BAD]])
def test_one_bad_prompt_refuses_the_request(manager: SimpleNamespace, parameters: Any) -> None:
    request = SimpleNamespace(sampling_params=parameters)
    with pytest.raises(ValueError, match=r"custom_params\.rheo: budget_ratio=2\.0 is not supported"):
        check_request(manager, request)
    with pytest.raises(HTTPException) as refused:
        check_stream(manager, request)
    assert refused.value.status_code == 400
    assert refused.value.detail.startswith("custom_params.rheo: budget_ratio=2.0")
    manager.server_args.attention_backend = "triton"
    check_request(manager, request)
    check_stream(manager, request)


def test_preferred_parameters_of_the_server_are_held_to_the_same(manager: SimpleNamespace) -> None:
    manager.preferred_sampling_params = BAD
    with pytest.raises(ValueError, match=r"budget_ratio=2\.0"):
        check_request(manager, SimpleNamespace(sampling_params={}))
    check_request(manager, SimpleNamespace(sampling_params=GOOD))


class Request:
    """What the hooks read and set of SGLang's `Req`."""

    def __init__(self, sampling_params: dict[str, Any], tokens: Sequence[int] = (1,)) -> None:
        self.origin_input_ids = tokens
        self.sampling_params = SimpleNamespace(custom_params=sampling_params.get("custom_params"))
        self.aborted: str | None = None

    def set_finish_with_abort(self, message: str) -> None:
        self.aborted = message


def test_the_scheduler_reads_settings_and_ends_a_request_whose_nobody_checked(
    manager: SimpleNamespace,
) -> None:
    good, bad, plain = Request(GOOD), Request(BAD), Request({})
    for request in (good, bad, plain):
        read_request(manager, request)
    assert good.rheo_budget == BudgetSettings(Fraction(1, 100), 64)  # type: ignore[attr-defined]
    assert good.aborted is None
    assert bad.aborted is not None
    assert bad.aborted.startswith("custom_params.rheo: budget_ratio=2.0")
    assert not hasattr(bad, "rheo_budget")
    assert not hasattr(plain, "rheo_budget")
    assert plain.aborted is None


@pytest.mark.parametrize(
    ("tokens", "reason"),
    [
        ([], "the prompt has 0 tokens; allowed: 1 or more"),
        ([0, 99, 100], "the prompt has token 100, which the model does not have; allowed: 0 to 99"),
        ([7, -1], "the prompt has token -1, which the model does not have; allowed: 0 to 99"),
        ([0, 99], None),
    ],
)
def test_a_prompt_without_tokens_or_with_others_than_the_model_s_is_ended(
    manager: SimpleNamespace, tokens: list[int], reason: str | None
) -> None:
    request = Request(GOOD, tokens)
    read_request(manager, request)
    assert request.aborted == reason


def test_a_requests_row_of_the_token_table_is_found_in_this_sglang() -> None:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.sampling.sampling_params import SamplingParams

    request = Req("rid", "text", [1, 2, 3], SamplingParams(custom_params=GOOD["custom_params"]))
    holder = request if hasattr(request, "req_pool_idx") else request.kv
    holder.req_pool_idx = 5
    assert compat.request_row(request) == 5
    assert brings_settings(request.sampling_params.custom_params)


@pytest.mark.parametrize("least", [0, -1])
def test_too_few_pages_are_refused_with_what_this_server_allows(least: int) -> None:
    parameters = {"rheo": {"budget_min_pages": least}}
    with pytest.raises(ConfigError, match=rf"budget_min_pages={least} .*; allowed: 1 to 4 on this server"):
        read_settings(parameters, RheoConfig(budget_min_pages=4))
