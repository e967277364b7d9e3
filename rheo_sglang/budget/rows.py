"""SettingRows: which row of a table holds which settings, and which of them each request has; on the host alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rheo_sglang.budget.settings import BudgetSettings

KEPT = 16
"""Rows that may be taken before unused ones are replaced: settings that come back then need not be computed again."""


class Changes(NamedTuple):
    """What an assignment changed.

    Attributes
    ----------
    added
        Rows that hold other settings than before, or are new; the lowest ones that are free.
    setting_of
        Requests that have another row than before.
    """

    added: dict[int, BudgetSettings]
    setting_of: dict[int, int]


class SettingRows:
    """A row for each set of settings in use; row 0 is the server's.

    Once `KEPT` rows are taken, one that no request has is replaced, the least recently used first. So there are never
    more than ``requests`` or `KEPT` of them besides the first.

    Parameters
    ----------
    server
        The server's settings.
    requests
        Requests that may run at once.
    """

    def __init__(self, server: BudgetSettings, requests: int) -> None:
        self.server = server
        self.row_of: dict[BudgetSettings, int] = {server: 0}
        """Of those without users, the one that has been so for longest is first."""
        self.settings: list[BudgetSettings] = [server]
        self.users = [requests]
        self.setting_of = [0] * requests

    def assign(self, requests: Sequence[int], settings: Sequence[BudgetSettings | None]) -> Changes:
        """Give each request the row of its settings; None stands for the server's."""
        changes = Changes({}, {})
        for request, own in zip(requests, settings, strict=True):
            wanted = own or self.server
            before = self.setting_of[request]
            held = self.settings[before]
            if held == wanted:
                continue
            self.users[before] -= 1
            if self.users[before] == 0:
                self.row_of[held] = self.row_of.pop(held)
            row = self._take(wanted, changes)
            self.users[row] += 1
            self.setting_of[request] = changes.setting_of[request] = row
        return changes

    def _take(self, settings: BudgetSettings, changes: Changes) -> int:
        row = self.row_of.get(settings)
        if row is None:
            row = self._free_row()
            changes.added[row] = self.settings[row] = settings
            self.row_of[settings] = row
        return row

    def _free_row(self) -> int:
        if len(self.settings) > KEPT:
            for settings, row in self.row_of.items():
                if row > 0 and self.users[row] == 0:
                    del self.row_of[settings]
                    return row
        self.settings.append(self.server)
        self.users.append(0)
        return len(self.settings) - 1
