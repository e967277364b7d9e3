"""Settings that a request brings along, under ``rheo`` in SGLang's ``custom_params``: read, and held against limits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from rheo_sglang.budget import BudgetSettings
from rheo_sglang.config import EVERY_LENGTH, RheoConfig
from rheo_sglang.errors import FLAG, ConfigError, reject

PARAMETERS = "custom_params"
KEY = "rheo"
"""Under which they are, so that other users of ``custom_params`` are left alone."""
SOURCE = f"{PARAMETERS}.{KEY}"
NAMES = (
    "budget_ratio",
    "budget_min_pages",
    "budget_max_pages",
    "budget_coverage",
    "budget_limit_ratio",
    "conservative",
    "conservative_margin",
)
"""What a request may set; each is the server's setting of that name."""


def brings_settings(custom_params: object) -> bool:
    """Whether a request has settings of its own; it need not have ``custom_params``."""
    return isinstance(custom_params, dict) and custom_params.get(KEY) is not None


def read_settings(custom_params: Mapping[str, Any], config: RheoConfig) -> BudgetSettings:
    """What bounds the pages of a request that `brings_settings`, the server's settings where it names none.

    Raises
    ------
    ConfigError
        On an unknown key, and a value of the wrong type, out of range, or beyond the server's limit.
    """
    values = custom_params[KEY]
    if not isinstance(values, dict):
        reject(KEY, values, "an object of settings", PARAMETERS)
    for name, value in values.items():
        if name not in NAMES:
            raise ConfigError(f"{SOURCE}: unknown key {name!r}={value!r}; allowed keys: {', '.join(NAMES)}")
    if config.dense_tokens == EVERY_LENGTH:
        raise ConfigError(
            f"{SOURCE}: this server attends all pages of every request; allowed: no settings, unless it is started "
            "with a dense_threshold"
        )
    ratio, most = values.get("budget_ratio"), config.most_request_ratio
    if (
        isinstance(ratio, int | float)
        and not isinstance(ratio, bool)
        and math.isfinite(ratio)
        and not 0 < ratio <= most
    ):
        reject("budget_ratio", float(ratio), f"above 0, at most {most} on this server", SOURCE)
    _check_least(values, config)
    try:
        asked = dataclasses.replace(
            config,
            request_budget_ratio=None,
            request_budget_min_pages=None,
            request_limit_ratio=None,
            **values,
        )
    except ConfigError as error:
        raise ConfigError(f"{SOURCE}: {str(error).removeprefix(f'{FLAG}: ')}") from None
    largest = config.largest_budget()
    if asked.budget_min_pages > largest.least:
        reject("budget_min_pages", asked.budget_min_pages, f"1 to {largest.least} on this server", SOURCE)
    if largest.most is not None and (asked.budget_max_pages or EVERY_LENGTH) > largest.most:
        reject("budget_max_pages", asked.budget_max_pages, f"at most {largest.most} on this server", SOURCE)
    _check_growth(values, asked, config)
    settings = asked.budget_settings(has_floor="budget_coverage" in values)
    return dataclasses.replace(settings, limit_ratio=min(settings.limit_ratio, largest.limit_ratio))


def _check_least(values: Mapping[str, Any], config: RheoConfig) -> None:
    """Refuse a least number of pages that is out of range, with the server's own."""
    least = values.get("budget_min_pages")
    if isinstance(least, int) and not isinstance(least, bool) and least < 1:
        reject("budget_min_pages", least, f"1 to {config.largest_budget().least} on this server", SOURCE)


def _check_growth(values: Mapping[str, Any], asked: RheoConfig, config: RheoConfig) -> None:
    """Refuse what raises a budget where the server does not allow that, and a limit beyond the server's."""
    most = config.most_limit_ratio
    allowed_by = {
        "budget_coverage": ("request_limit_ratio", config.requests_may_grow),
        "budget_limit_ratio": ("request_limit_ratio", most > 0),
        "conservative": ("request_limit_ratio", config.requests_may_grow),
        "conservative_margin": ("conservative_margin", config.conservative_margin is not None),
    }
    for name, (setting, allowed) in allowed_by.items():
        if name in values and not allowed and values[name] != "off":
            off = "off" if name == "conservative" else "not given"
            reject(name, values[name], f"{off} on this server, which has no {setting}", SOURCE)
    if (asked.budget_limit_ratio or 0) > most and "budget_limit_ratio" in values:
        within = f"above 0, at most {float(most)} on this server"
        reject("budget_limit_ratio", asked.budget_limit_ratio, within, SOURCE)


def check_parameters(sampling_params: object, preferred: Mapping[str, Any] | None) -> None:
    """Check what a client sends as ``sampling_params``, for one prompt or a list of them, before any of it is run.

    Parameters
    ----------
    sampling_params
        An object, a list of them, or None.
    preferred
        The server's ``--preferred-sampling-params``, which stand where a request says nothing else.

    Raises
    ------
    ConfigError
        See `read_settings`.
    """
    for one in sampling_params if isinstance(sampling_params, list) else [sampling_params]:
        merged = {**(preferred or {}), **(one if isinstance(one, dict) else {})}
        if brings_settings(merged.get(PARAMETERS)):
            read_settings(merged[PARAMETERS], RheoConfig.from_environment())
