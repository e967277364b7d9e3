"""RheoConfig: every setting of the rheo backend, validated before anything is built."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import typing
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import torch

from rheo_sglang.budget import BUDGETS, BudgetRule, BudgetSettings, BudgetTable
from rheo_sglang.errors import FLAG, ConfigError, reject
from rheo_sglang.registry import Registry
from rheo_sglang.selection import SUMMARIES, EstimatingSummary
from rheo_sglang.setting_values import import_extensions, in_range, read_settings_text, typed, writable
from rheo_sglang.tiering import POLICIES

logger = logging.getLogger(__name__)

ENVIRONMENT = "RHEO_CONFIG"
PAGE_SIZES = (16, 32, 64)
DEFAULT_PAGE_SIZE = 32
DENSE_TOKENS = 4096
"""Where selection starts if a budget is given and `RheoConfig.dense_threshold` is not."""
ESTIMATES, BOUND = "subcentroids4", "bound"
"""Page summaries where none is given: the first where it serves the model's shape."""
CONSERVATIVE_FLOOR = 0.9
"""Of the estimated attention, in conservative mode that is ``on``."""
PREWARM = 0.7
"""Weight of a prompt in importance, where ``prewarm`` is ``on``."""
LIMIT_RATIO = Fraction(1, 4)
"""Share of its pages to which scores may raise what a request selects, where no other is given."""
EVERY_LENGTH = 2**31 - 1
"""No request has more tokens: int32."""
REGISTRIES: dict[str, Registry] = {"budget": BUDGETS, "summary": SUMMARIES, "policy": POLICIES}
"""Where the choices of a key come from."""


@dataclass(frozen=True)
class RheoConfig:
    """Settings of ``--attention-backend rheo``, from ``--rheo-config`` (JSON text or a file) or ``RHEO_CONFIG``.

    Raises
    ------
    ConfigError
        On a value of the wrong type or out of range.
    """

    budget: str = "fixed"
    """What decides how many pages a request may select: a fixed share of them (``fixed``), or in each step and KV head
    as many more as hold ``budget_coverage`` of the estimated attention (``coverage``)."""
    budget_ratio: float = 0.04
    """Share of its pages that a request may select per KV head and step; 1.0 is dense attention, less can lose what
    the context says."""
    budget_min_pages: int = 64
    """Fewest pages the budget may be, however short the request; under thrash ``thrash_budget`` of it."""
    budget_max_pages: int | None = None
    """Most pages the budget may be, however long the request; at least ``budget_min_pages``."""
    budget_coverage: float = 0.9
    """With budget ``coverage``, the share of the estimated attention that selected pages should hold."""
    budget_limit_ratio: float | None = None
    """Share of its pages to which scores may raise what a request selects; by default a quarter. With budget
    ``fixed`` nothing raises it, in ``conservative`` mode there is no limit."""
    conservative: Literal["off", "on"] | float = "off"
    """Whether a KV head whose selected pages hold less of the estimated attention than a floor selects more in that
    step, up to everything: ``off``, ``on`` (a floor of 0.9), or the floor, above 0, at most 1."""
    conservative_margin: float | None = None
    """Margin, in nats, between the log-probabilities of a request's two most probable next tokens below which its next
    step selects as many pages as its limit allows; when not given, margins are not looked at. 0: only those of requests
    that ask for it (docs/requests.md)."""
    request_budget_ratio: float | None = None
    """Largest ``budget_ratio`` that a request may ask for (docs/requests.md); ``budget_ratio`` when not given."""
    request_budget_min_pages: int | None = None
    """Largest ``budget_min_pages`` that a request may ask for; ``budget_min_pages`` when not given."""
    request_limit_ratio: float | None = None
    """Share of its pages to which a floor or the conservative mode that a request asks for may raise what it selects;
    when not given, that of the server's own floor, and without one requests may not ask for any."""
    sink_pages: int = 1
    """First pages of a request, always selected."""
    window_pages: int = 2
    """Last pages of a request, the one being written included, always selected."""
    dense_threshold: int | None = None
    """Requests up to this many tokens attend all their pages; when not given, 4096 with a budget below 1.0, no limit at
    1.0. On a GPU a step skips selection if every request of the batch is this short."""
    extensions: tuple[str, ...] = ()
    """Importable modules that register more page summaries, budget rules or policies."""
    summary: str | None = None
    """What summarises a page: the mean keys of every 2, 4 or 8 of its tokens in 4 bits, which estimate the attention
    that the page draws (``subcentroids2``, ``subcentroids4``, ``subcentroids8``), the bounding box of its keys
    (``bound``), or their average (``mean``). When not given, ``subcentroids4``, or ``bound`` for head sizes that are no
    power of two."""
    tail: bool = True
    """Whether the pages that a step leaves out are attended by what their summaries estimate, where they do."""
    grouping: Literal["mean", "max"] = "mean"
    """How the query heads of a GQA group agree on one score: their mean, or, with summary ``bound`` or ``mean``, their
    maximum."""
    calibrate: bool | None = None
    """Whether a prompt's last tokens, whose attention is known, tell by how much each of its pages is estimated wrong;
    what a step selects, and what it holds, goes by estimates that are corrected by so much. Needs a summary that
    estimates attention; when not given, on with one, unless every page is selected."""
    residency_bonus: float = 0.0
    """By how much a page that has a frame is preferred in a selection, in nats: it takes the place of one without a
    frame that is estimated to draw up to so much more attention. What that leaves out is attended by its estimate.
    Requests with a floor have no bonus; 0: selections do not ask where pages are."""
    importance_alpha: float = 0.3
    """Weight of the newest step in a page's importance."""
    prewarm: Literal["auto", "off", "on"] | float = "auto"
    """What importance a prompt leaves behind, by which its pages get frames before the first decode step: ``on``, of
    what its last tokens attended, by a weight of 0.7 against what earlier requests left in a cached prefix, or by the
    weight given, above 0, at most 1; ``off``, as of one decode step, and pages that are new begin low; ``auto``, on
    without a GPU, off with one, where it was not run yet."""
    policy: str = "importance"
    """Which pages keep their frames: those that attention ranks high on average (``importance``), also by how recently
    they were used (``recency``), that rank high and were used often of late (``predicted``), that were among the best
    in most of the last steps (``window``), or that were used last (``lru``) or most (``lfu``)."""
    tree_eviction: Literal["sglang", "importance"] = "sglang"
    """Which cached prefixes go when the host pool is full: those of SGLang's ``--radix-eviction-policy``, or those of
    least importance and recency."""
    importance_file: str | None = None
    """File to write the importance of every cached block to, for other programs (docs/importance.md); no file when not
    given."""
    importance_interval: float = 10.0
    """Seconds between two such writes."""
    miss_mode: Literal["auto", "split", "fetch"] = "auto"
    """Missed pages are attended by the CPU where they are (``split``), or read over the bus (``fetch``); ``auto`` does
    both at once, divided by what each was measured to take at start and took of late. Without a GPU, no choice."""
    cpu_threads: int | None = None
    """Threads that attend misses on the CPU beside a GPU; by default half of the cores."""
    host_pool_gib: float | None = None
    """Size of the host pool in GiB, on each rank."""
    host_pool_ratio: float | None = None
    """Size of the host pool as a multiple of the frame pool (8 when neither is given)."""
    frame_pool_gib: float | None = None
    """Size of the frame pool in GiB, on each rank; when not given, on a GPU what SGLang would give the KV cache, less
    what prefill, summaries and page table take."""
    frame_pool_tokens: int | None = None
    """Size of the frame pool in tokens, instead of GiB."""
    plan_decode_buffers: bool = False
    """Whether the buffers of decode steps of all requests that may run are taken off the memory before the pools are
    sized, so that no batch runs out of it; without a GPU there are none."""
    working_set_steps: int = 64
    """Decode steps over which working sets are counted: the distinct pages that a request selected in them."""
    admission: Literal["off", "working_set"] = "off"
    """A waiting request joins the running ones whenever SGLang has room for its tokens (``off``), or if also their
    working sets and what it needs fit into the frames (``working_set``). Without a GPU a miss costs as little as a
    hit, so it only makes requests wait there."""
    admission_overcommit: float = 2.0
    """Working sets may take up to so many times the frames before nobody joins: not all of a working set is selected in
    one step."""
    thrash_hit_rate: float = 0.75
    """A lower hit rate while working sets exceed the frames is thrash: budgets shrink, then the youngest request
    pauses. 0: never."""
    thrash_budget: float = 0.5
    """Share of their budgets that requests keep at least under thrash, of ``budget_min_pages`` too, and never less than
    sinks, window and four pages more; 1.0: budgets do not shrink."""
    recorder: Literal["off", "hits", "mass"] = "hits"
    """Count hits per request, layer and KV head; ``mass`` also measures the attention mass that the selection
    covers, by attending the rest as well (a diagnosis for a test server: steps run by the torch reference engine)."""
    trace: str | None = None
    """Folder, new or empty, that every decode step's page scores and selection are written to, for ``rheo replay`` and
    ``rheo heatmap``; steps that the writer has no time for are dropped and counted. Needs the extra ``trace``."""
    trace_gib: float = 4.0
    """Size at which a trace ends, in GiB, on each rank."""

    def __post_init__(self) -> None:
        """Validate types and ranges, with what the extensions register among the choices."""
        import_extensions(self.extensions)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            coerced = typed(field.name, value, _HINTS[field.name], REGISTRIES)
            object.__setattr__(self, field.name, coerced)
        in_range("budget_ratio", self.budget_ratio, low=0, high=1, open_low=True)
        in_range("budget_min_pages", self.budget_min_pages, low=1, high=EVERY_LENGTH)
        in_range("sink_pages", self.sink_pages, low=0, high=EVERY_LENGTH)
        in_range("window_pages", self.window_pages, low=1, high=EVERY_LENGTH)
        in_range("budget_coverage", self.budget_coverage, low=0, high=1, open_low=True)
        if self.budget_limit_ratio is not None:
            in_range("budget_limit_ratio", self.budget_limit_ratio, low=0, high=1, open_low=True)
        if isinstance(self.conservative, float):
            in_range("conservative", self.conservative, low=0, high=1, open_low=True)
        if self.conservative_margin is not None:
            in_range("conservative_margin", self.conservative_margin, low=0)
        if self.budget_max_pages is not None:
            in_range("budget_max_pages", self.budget_max_pages, low=1, high=EVERY_LENGTH)
        in_range("residency_bonus", self.residency_bonus, low=0)
        in_range("working_set_steps", self.working_set_steps, low=1, high=EVERY_LENGTH)
        in_range("admission_overcommit", self.admission_overcommit, low=0, open_low=True)
        in_range("thrash_hit_rate", self.thrash_hit_rate, low=0, high=1)
        in_range("thrash_budget", self.thrash_budget, low=0, high=1, open_low=True)
        if self.dense_threshold is not None:
            in_range("dense_threshold", self.dense_threshold, low=0)
        if isinstance(self.prewarm, float):
            in_range("prewarm", self.prewarm, low=0, high=1, open_low=True)
        in_range("importance_alpha", self.importance_alpha, low=0, high=1, open_low=True)
        in_range("importance_interval", self.importance_interval, low=0, open_low=True)
        if self.importance_file is not None and not writable(self.importance_file):
            reject("importance_file", self.importance_file, "a file in a folder that can be written to")
        for name in ("host_pool_gib", "host_pool_ratio", "frame_pool_gib", "frame_pool_tokens"):
            if getattr(self, name) is not None:
                in_range(name, getattr(self, name), low=0, open_low=True)
        if self.grouping != "mean" and issubclass(SUMMARIES[self.summary or ESTIMATES], EstimatingSummary):
            allowed = "mean, or summary bound or mean (the others estimate shares of attention)"
            reject("grouping", self.grouping, allowed)
        if self.cpu_threads is not None:
            in_range("cpu_threads", self.cpu_threads, low=1, high=256)
        if self.budget_max_pages is not None and self.budget_max_pages < self.budget_min_pages:
            reject(
                "budget_max_pages",
                self.budget_max_pages,
                f"at least budget_min_pages={self.budget_min_pages}",
            )
        if self.request_budget_ratio is not None:
            in_range("request_budget_ratio", self.request_budget_ratio, low=self.budget_ratio, high=1)
        if self.request_budget_min_pages is not None:
            high = self.budget_max_pages or EVERY_LENGTH
            in_range("request_budget_min_pages", self.request_budget_min_pages, self.budget_min_pages, high)
        if self.request_limit_ratio is not None:
            own = float(self.budget_settings().limit_ratio)
            in_range("request_limit_ratio", self.request_limit_ratio, own or 0, 1, open_low=own == 0)
        in_range("trace_gib", self.trace_gib, low=0, open_low=True)
        for one, other in (("host_pool_gib", "host_pool_ratio"), ("frame_pool_gib", "frame_pool_tokens")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                reject(other, getattr(self, other), f"one of {one} and {other}, not both")
        if self.host_pool_ratio is not None and self.host_pool_ratio < 1:
            reject("host_pool_ratio", self.host_pool_ratio, "at least 1 (the host pool holds every page)")
        if self.host_pool_gib is not None and (self.frame_pool_gib or 0) > self.host_pool_gib:
            reject(
                "host_pool_gib",
                self.host_pool_gib,
                f"at least frame_pool_gib={self.frame_pool_gib} (the host pool holds every page)",
            )

    @property
    def selects_all(self) -> bool:
        """Whether every request may select all of its pages, however long it is."""
        return self.budget_max_pages is None and self.budget_rule().selects_all

    @property
    def dense_tokens(self) -> int:
        """Requests up to this many tokens select all their pages, without selection where that is possible."""
        if self.dense_threshold is not None:
            return self.dense_threshold
        return EVERY_LENGTH if self.selects_all else DENSE_TOKENS

    def page_summary(self, head_dim: int, page_size: int, key_dtype: torch.dtype) -> str:
        """Name of the page summary for a shape: the one given, or the default that serves it."""
        if self.summary is not None:
            return self.summary
        served = SUMMARIES[ESTIMATES]().unsupported(head_dim, page_size, key_dtype) is None
        return ESTIMATES if served else BOUND

    def corrects_estimates(self, summary: str) -> bool:
        """Whether estimates are corrected where pages are summarised by this page summary."""
        if self.calibrate is not None:
            return self.calibrate
        return not self.selects_all and issubclass(SUMMARIES[summary], EstimatingSummary)

    def warn_of_budget(self) -> None:
        """Log what a budget of less than all pages risks."""
        if not self.selects_all:
            logger.warning(
                "rheo: a budget of less than all pages (budget=%s, budget_ratio=%g, budget_max_pages=%s) can lose "
                "answers that dense attention gives; docs/quality.md says what was measured, and 'rheo eval compare' "
                "measures your model",
                self.budget,
                self.budget_ratio,
                self.budget_max_pages,
            )

    def budget_rule(self) -> BudgetRule:
        """The budget rule, which is given the ratio as the decimal that was written."""
        return BUDGETS[self.budget](Fraction(repr(self.budget_ratio)))

    @property
    def conservative_floor(self) -> float:
        """Share of the estimated attention below which every KV head selects more; 0 where conservative mode is off."""
        if isinstance(self.conservative, float):
            return self.conservative
        return CONSERVATIVE_FLOOR if self.conservative == "on" else 0.0

    def prewarm_weight(self, device: str) -> float:
        """Weight of a prompt in importance where frames are on a device of this type; 0 where pre-warming is off."""
        if isinstance(self.prewarm, float):
            return self.prewarm
        return PREWARM if self.prewarm == "on" or (self.prewarm == "auto" and device == "cpu") else 0.0

    def budget_settings(self, has_floor: bool = False) -> BudgetSettings:
        """What bounds the pages of a request that has no settings of its own.

        Parameters
        ----------
        has_floor
            Whether ``budget_coverage`` is a floor whatever the rule is.
        """
        ratio = Fraction(repr(self.budget_ratio))
        limit_ratio = max(ratio, LIMIT_RATIO)
        if self.budget_limit_ratio is not None:
            limit_ratio = Fraction(repr(self.budget_limit_ratio))
        floor = self.budget_coverage if has_floor or BUDGETS[self.budget].follows_floor else 0.0
        if self.conservative != "off":
            floor, limit_ratio = max(floor, self.conservative_floor), Fraction(1)
        elif not floor and self.conservative_margin is None and not self.budget_rule().reads_scores:
            limit_ratio = Fraction(0)
        bounds = self.budget_min_pages, self.budget_max_pages
        return BudgetSettings(ratio, *bounds, floor, limit_ratio, self.conservative_margin or 0.0)

    @property
    def budgets_grow(self) -> bool:
        """Whether scores, or the margin of the step before, may raise a budget, any request's."""
        margins = self.conservative_margin is not None
        return margins or self.budget_rule().reads_scores or self.requests_may_grow

    @property
    def requests_may_grow(self) -> bool:
        """Whether a request may have a floor: its own, or the server's."""
        return self.request_limit_ratio is not None or self.budget_settings().floor > 0

    @property
    def most_limit_ratio(self) -> Fraction:
        """Largest limit of a request, as a share of its pages."""
        if self.request_limit_ratio is None:
            return self.budget_settings().limit_ratio
        return Fraction(repr(self.request_limit_ratio))

    @property
    def most_request_ratio(self) -> float:
        """Largest ``budget_ratio`` of a request."""
        return self.request_budget_ratio or self.budget_ratio

    def largest_budget(self) -> BudgetSettings:
        """What bounds the pages of a request that asks for as many as it may."""
        return dataclasses.replace(
            self.budget_settings(),
            ratio=Fraction(repr(self.most_request_ratio)),
            least=self.request_budget_min_pages or self.budget_min_pages,
            floor=1.0 if self.requests_may_grow else 0.0,
            limit_ratio=self.most_limit_ratio,
        )

    def budget_table(
        self,
        page_size: int,
        max_pages: int,
        device: str | torch.device = "cpu",
        requests: int = 1,
    ) -> BudgetTable:
        """Pages that ``requests`` requests of up to ``max_pages`` pages may select, on ``device``."""
        return BudgetTable(
            BUDGETS[self.budget],
            max_pages,
            page_size,
            self.budget_settings(),
            self.largest_budget(),
            forced=self.sink_pages + self.window_pages,
            dense_tokens=self.dense_tokens,
            requests=requests,
            device=device,
            margins=self.conservative_margin is not None,
        )

    @classmethod
    def parse(cls, text: str, source: str = FLAG) -> RheoConfig:
        """Build a config from JSON text, or from the file that ``text`` names.

        Raises
        ------
        ConfigError
            If the file cannot be read, the text is no JSON object, a key is unknown or a value is bad.
        """
        values = read_settings_text(text, _HINTS, source)
        try:
            return cls(**values)
        except ConfigError as error:
            raise ConfigError(f"{source}: {str(error).removeprefix(f'{FLAG}: ')}") from None

    @classmethod
    def from_environment(cls) -> RheoConfig:
        """The config that ``RHEO_CONFIG`` holds, or the defaults."""
        text = os.environ.get(ENVIRONMENT, "").strip()
        return cls.parse(text, ENVIRONMENT) if text else cls()

    def to_json(self) -> str:
        """JSON text from which `parse` builds this config again."""
        return json.dumps(dataclasses.asdict(self))


_HINTS: dict[str, Any] = typing.get_type_hints(RheoConfig)
