"""In which band a figure is expected, and whether it is there: the answer to "is my loss right?"."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lessons.common.table import deviation

SIGMAS = 3.0
ROUNDING = 1e-3
"""Share of a figure that another processor may move it by: sums of float32 in another order."""


@dataclass(frozen=True)
class Band:
    """Where a figure is expected to lie.

    Attributes
    ----------
    low, high : float
        Both still inside.
    seeds : int
        Of how many runs it was made; 0 for a band that was not measured but reasoned.
    reason : str
        What it allows for.
    """

    low: float
    high: float
    seeds: int = 0
    reason: str = ""

    @classmethod
    def around(cls, values: Sequence[float], allowance: float = 0.0, reason: str = "") -> Band:
        """Three standard deviations around the mean of several runs, and never less than rounding.

        Parameters
        ----------
        values : sequence of float
            One a seed, two at least.
        allowance : float
            Standard deviation of what differs between machines and not between seeds, such as another text.
        reason : str
        """
        mean = math.fsum(values) / len(values)
        margin = max(SIGMAS * math.hypot(deviation(values), allowance), ROUNDING * abs(mean))
        return cls(mean - margin, mean + margin, len(values), reason)

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def verdict(self, value: float, digits: int = 3) -> str:
        """One line: inside or outside, of which band, and what that band was made of."""
        if value in self:
            place = "inside"
        elif math.isnan(value):
            place = "not a number, so not in"
        else:
            place = "below" if value < self.low else "above"
        over = f" over {self.seeds} seeds" if self.seeds else ""
        why = f" ({self.reason})" if self.reason else ""
        return f"{place} the expected band {self.low:.{digits}f}–{self.high:.{digits}f}{over}{why}"
