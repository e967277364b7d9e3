"""BudgetSettings: what bounds the pages that a request selects; the server's, or a request's own."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class BudgetSettings:
    """Settings from which a request's pages follow, exactly, for every length. Equal settings share a row of the table.

    Attributes
    ----------
    ratio
        What the budget rule is given.
    least, most
        Bounds of the budget, in pages; ``most`` may be None.
    floor
        Share of the estimated attention that the selected pages should hold, 0 to 1; 0 for no floor.
    limit_ratio
        Share of its pages, rounded up, to which scores may let a request select more than its budget.
    margin
        Margin of log-probabilities, in nats, below which a request's next step selects up to its limit.
    """

    ratio: Fraction
    least: int = 1
    most: int | None = None
    floor: float = 0.0
    limit_ratio: Fraction = Fraction(0)
    margin: float = 0.0
