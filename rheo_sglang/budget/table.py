"""BudgetTable: how many pages a request may select, by its settings, for every number of pages that it can have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

import torch

from rheo_kernels.types import Budgets
from rheo_sglang.budget.base import BudgetRule
from rheo_sglang.budget.rows import SettingRows
from rheo_sglang.budget.settings import BudgetSettings
from rheo_sglang.budget.share import share_of

LEAST_SCORED = 4
"""Pages beside sinks and window that shrunk budgets keep: what a selection needs to be one."""


class BudgetTable:
    """A rule's caps within the bounds that settings give, computed once for each set of settings in use.

    The batch's description on CPU and GPU and the widths of selections all read it. A request of up to
    ``dense_tokens``, rounded up to whole pages, selects all of them. Any other one selects at least ``least`` and the
    pages that are always selected, at most ``most`` unless those are more, and never more than it has. Scores may let
    that grow up to a limit (`rheo_kernels.reference.allow`).

    Row 0 holds the server's own settings. Others get a row when a request with them is first seen (`SettingRows`), and
    the tensors grow then: both happen before a step's graph, which reads none of this.

    Parameters
    ----------
    rule
        Budget rule, made from a ratio.
    max_pages
        Pages of the longest request.
    page_size
        Tokens per page.
    settings
        The server's.
    largest
        Settings that bound those of requests: none selects more pages than the greater of these and the server's would.
        The server's by default.
    forced
        Pages that are always selected: sinks and window.
    dense_tokens
        Tokens up to which a request selects all its pages.
    requests
        ``R``, rows of SGLang's token table.
    device
        Where the tensors live.
    margins
        Whether margins of log-probabilities are noted.

    Attributes
    ----------
    rule
        The budget rule with the server's ratio.
    reads_scores
        Whether scores may raise a budget, by the rule or by a floor, also that of a step after a small margin.
    tensors
        What a batch's description reads; replaced when they grow.
    dense_pages
        ``dense_tokens`` in pages.
    factor
        What `shrink` was called with last, in (0, 1]; 1 by default.
    """

    def __init__(
        self,
        rule: Callable[[Fraction], BudgetRule],
        max_pages: int,
        page_size: int,
        settings: BudgetSettings,
        largest: BudgetSettings | None = None,
        forced: int = 1,
        dense_tokens: int = 0,
        requests: int = 1,
        device: str | torch.device = "cpu",
        margins: bool = False,
    ) -> None:
        self.make_rule = rule
        self.rule = rule(settings.ratio)
        self.max_pages = max_pages
        self.page_size = page_size
        self.forced = forced
        self.dense_pages = -(-dense_tokens // page_size)
        self.factor = self._settled = 1.0
        floor = max(settings.floor, (largest or settings).floor)
        self.reads_scores = margins or self.rule.reads_scores or floor > 0
        self._rows = SettingRows(settings, requests)
        self._lengths = self._most = torch.arange(max_pages + 1)
        caps, limits = self._bounds(settings, self._lengths)
        self._most = torch.maximum(limits, self._bounds(largest or settings, self._lengths)[1])
        self._caps, self._limits = caps.tolist(), limits.tolist()
        self._widest = self._most.cummax(0).values.tolist()
        self.tensors = Budgets(
            caps[None].to(device, torch.int32),
            limits[None].to(device, torch.int32),
            torch.tensor([settings.floor], dtype=torch.float32, device=device),
            torch.tensor([settings.margin], dtype=torch.float32, device=device) if margins else None,
            torch.zeros(requests, dtype=torch.int32, device=device),
            torch.full((requests,), torch.inf, dtype=torch.float32, device=device) if margins else None,
        )

    @property
    def caps(self) -> torch.Tensor:
        """Pages that a request with the server's settings may select, by its number of pages, int32."""
        return self.tensors.caps[0]

    @property
    def least_shrunk(self) -> int:
        """Pages below which no budget shrinks: those that are always selected and `LEAST_SCORED` more."""
        return self.forced + LEAST_SCORED

    def width(self, pages: int) -> int:
        """``S``: the widest selection of a batch whose longest request has ``pages`` pages."""
        return self._widest[pages]

    def shrink(self, factor: float) -> None:
        """Shrink caps, and the limits to which scores may let them grow, to a share of what settings say.

        It holds from the next step on. Both keep `least_shrunk` pages, as far as they have them; what settings say
        for the fewest pages shrinks as the rest does. Requests that select all their pages still do. Widths of
        selections stay.
        """
        self.factor = factor

    def settle(self) -> None:
        """Carry out what `shrink` asked for; before a step, on its stream, never waits for a GPU."""
        if self.factor == self._settled:
            return
        self._settled = self.factor
        for row, settings in enumerate(self._rows.settings):
            self._write(row, settings)

    def cap_of(self, pages: int, factor: float = 1.0, settings: BudgetSettings | None = None) -> int:
        """Cap of a request of so many pages, shrunk by a factor, with the server's settings or its own.

        It is known on the host.
        """
        return self.bounds_of(pages, factor, settings)[0]

    def bounds_of(
        self, pages: int, factor: float = 1.0, settings: BudgetSettings | None = None
    ) -> tuple[int, int]:
        """Cap and limit, as `cap_of`."""
        pages = min(pages, self.max_pages)
        if settings is None:
            bounds = self._caps[pages], self._limits[pages]
        else:
            cap, limit = self._bounds(settings, torch.tensor([pages]))
            bounds = int(cap), int(limit)
        if pages <= self.dense_pages:
            return bounds
        cap, limit = (max(int(bound * factor), min(bound, self.least_shrunk)) for bound in bounds)
        return cap, limit

    def caps_of(self, requests: torch.Tensor, num_pages: torch.Tensor) -> torch.Tensor:
        """Pages that requests may select, ``[B]``, int32, by their rows of the token table and their pages, ``[B]``."""
        setting = self.tensors.setting_of[requests.long()].long()
        return self.tensors.caps[setting, num_pages.long()]

    def assign(self, requests: Sequence[int], settings: Sequence[BudgetSettings | None]) -> None:
        """Set what bounds requests from now on; nothing is copied to the device unless something changes.

        Parameters
        ----------
        requests
            Rows of SGLang's token table, each once.
        settings
            Of the request that has the row; None for the server's.
        """
        changes = self._rows.assign(requests, settings)
        for row, added in changes.added.items():
            self._write(row, added)
        if changes.setting_of:
            moved = torch.tensor([list(changes.setting_of), list(changes.setting_of.values())])
            where, rows = self._to_device(moved)
            self.tensors.setting_of.index_copy_(0, where, rows.int())

    def _bounds(self, settings: BudgetSettings, pages: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Caps and limits of settings for numbers of pages, ``[X]``, int64."""
        caps = self.make_rule(settings.ratio).cap(pages)
        caps = caps.clamp(min=settings.least, max=settings.most).clamp(min=self.forced)
        limits = torch.maximum(caps, share_of(pages, settings.limit_ratio))
        dense = pages <= self.dense_pages
        most = torch.minimum(self._most[pages], pages)
        caps, limits = (torch.where(dense, pages, torch.minimum(bound, most)) for bound in (caps, limits))
        return caps, limits

    def _shrunk(self, bounds: torch.Tensor) -> torch.Tensor:
        """Caps or limits for every number of pages, ``[max_pages + 1]``, int64, shrunk as was asked for last."""
        least = bounds.clamp(max=self.least_shrunk)
        shrunk = torch.maximum((bounds.double() * self._settled).floor().long(), least)
        return torch.where(self._lengths <= self.dense_pages, bounds, shrunk)

    def _write(self, row: int, settings: BudgetSettings) -> None:
        """Write a row, in tensors twice as large if there is none such."""
        if row >= len(self.tensors.caps):
            by_row = {name: getattr(self.tensors, name) for name in ("caps", "limits", "floors", "levels")}
            self.tensors = self.tensors._replace(
                **{
                    name: torch.cat((table, torch.zeros_like(table)))
                    for name, table in by_row.items()
                    if table is not None
                }
            )
        caps, limits = (self._shrunk(bounds) for bounds in self._bounds(settings, self._lengths))
        self.tensors.caps[row].copy_(self._to_device(caps))
        self.tensors.limits[row].copy_(self._to_device(limits))
        self.tensors.floors[row].fill_(settings.floor)
        if self.tensors.levels is not None:
            self.tensors.levels[row].fill_(settings.margin)

    def _to_device(self, on_host: torch.Tensor) -> torch.Tensor:
        device = self.tensors.caps.device
        if device.type == "cuda":
            on_host = on_host.pin_memory()
        return on_host.to(device, non_blocking=True)
