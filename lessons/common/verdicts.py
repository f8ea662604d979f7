"""What figures over seeds say of a statement: a rule that is fixed before the data, and one of four verdicts.

A statement is taken apart into parts, each an inequality that it implies: "this figure is above that threshold". Of
every part there is an interval over seeds. It holds if the whole interval lies above the threshold, it does not hold if
the whole interval lies below, and otherwise the seeds do not tell. All parts of a statement are meant at once, so each
interval is the wider for it (Bonferroni): with k parts at 95 % in all, each has 1 − 0.05/k.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from minigpt.errors import InputError

LEVEL = 0.95
"""Of all intervals of a statement together."""
LEAST_SEEDS = 3
"""With fewer runs there is no interval worth the name."""

Interval = Callable[[Sequence[float], float], tuple[float, float, float]]
"""Values, one a seed, and a level → mean, low and high."""


class Verdict(StrEnum):
    """What can be said of a statement."""

    HOLDS = "holds"
    FAILS = "does not hold"
    CONDITION = "holds only under a stated condition"
    UNKNOWN = "the data cannot say"


@dataclass(frozen=True)
class Part:
    """An inequality that a statement implies: `values` are above `above`.

    Attributes
    ----------
    name : str
        Under which condition, or of what.
    values : list of float
        One a seed; a single one where `exact`.
    above : float
        The threshold.
    unit : str
        Of values and threshold.
    exact : bool
        Counted or proved, not sampled: one value is enough, and its interval has no width.
    void : str
        Why this part cannot be judged by its values, if so.
    """

    name: str
    values: list[float]
    above: float = 0.0
    unit: str = ""
    exact: bool = False
    void: str = ""


@dataclass(frozen=True)
class Judged:
    """A part with its interval.

    Attributes
    ----------
    name, unit : str
    mean, low, high : float
    above : float
    seeds : int
        0 for an exact figure.
    verdict : Verdict
        Never `Verdict.CONDITION`.
    """

    name: str
    unit: str
    mean: float
    low: float
    high: float
    above: float
    seeds: int
    verdict: Verdict


def judge(parts: Sequence[Part], interval: Interval) -> list[Judged]:
    """Each part with its interval, at a level that is `LEVEL` for all of them together.

    Parameters
    ----------
    parts : sequence of Part
        One at least.
    interval : callable
        Of a mean over seeds, such as lesson 11's `mean_interval`.

    Raises
    ------
    InputError
        If there is no part, or one without values or with a value that is not finite.
    """
    if not parts:
        raise InputError("a statement without parts cannot be judged")
    sampled = sum(not part.exact for part in parts)
    level = 1 - (1 - LEVEL) / max(1, sampled)
    return [_judged(part, level, interval) for part in parts]


def _judged(part: Part, level: float, interval: Interval) -> Judged:
    if not part.values or not all(map(math.isfinite, part.values)):
        raise InputError(f"{part.name}: its figures are {part.values}; they must be finite, one at least")
    mean = math.fsum(part.values) / len(part.values)
    enough = not part.void and (part.exact or len(part.values) >= LEAST_SEEDS)
    low = high = mean
    if not part.exact and len(part.values) > 1:
        mean, low, high = interval(part.values, level)
    if enough and low > part.above:
        verdict = Verdict.HOLDS
    elif enough and (high < part.above or (part.exact and high <= part.above)):
        verdict = Verdict.FAILS
    else:
        verdict = Verdict.UNKNOWN
    name = f"{part.name} ({part.void})" if part.void else part.name
    return Judged(name, part.unit, mean, low, high, part.above, 0 if part.exact else len(part.values), verdict)


def combined(parts: Sequence[Judged]) -> Verdict:
    """The verdict on a statement that means all of its parts.

    It holds if every part does. If some do, it holds under the condition of these. If none does and one is refuted, the
    statement is. Otherwise the data cannot say.
    """
    verdicts = [part.verdict for part in parts]
    if all(v is Verdict.HOLDS for v in verdicts):
        return Verdict.HOLDS
    if Verdict.HOLDS in verdicts:
        return Verdict.CONDITION
    return Verdict.FAILS if Verdict.FAILS in verdicts else Verdict.UNKNOWN


def condition(parts: Sequence[Judged]) -> str:
    """Where a statement holds, where it does not, and where the seeds do not tell; empty where all parts agree."""
    words = ((Verdict.HOLDS, "holds for"), (Verdict.FAILS, "not for"), (Verdict.UNKNOWN, "undecided for"))
    named = [(text, [p.name for p in parts if p.verdict is verdict]) for verdict, text in words]
    told = [f"{text}: {', '.join(names)}" for text, names in named if names]
    return "; ".join(told) if len(told) > 1 else ""


# ---------------------------------------------------------------------------------------------- Student's t


def student_t(p: float, df: int) -> float:
    """Quantile of Student's t distribution.

    Parameters
    ----------
    p : float
        Probability below the quantile, in (0, 1).
    df : int
        Degrees of freedom, 1 or more.

    Returns
    -------
    t : float

    Raises
    ------
    InputError
        If an argument is out of range.

    References
    ----------
    Abramowitz, Stegun, "Handbook of Mathematical Functions", 26.7.3 and 26.7.4: the probability as a finite sum.

    Examples
    --------
    >>> round(student_t(0.975, 4), 3)
    2.776
    """
    if not 0 < p < 1 or df < 1:
        raise InputError(f"Student's t at p = {p} with {df} degrees of freedom; 0 < p < 1 and 1 or more are needed")
    if p < 0.5:
        return -student_t(1 - p, df)
    low, high = 0.0, math.pi / 2  # t = tan(θ)·√df
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if 0.5 + _within(middle, df) / 2 < p else (low, middle)
    return math.tan(low) * math.sqrt(df)


def _within(theta: float, df: int) -> float:
    # Probability of |t| < tan(θ)·√df.
    sine, cosine = math.sin(theta), math.cos(theta)
    term, total = (cosine, cosine) if df % 2 else (1.0, 1.0)
    for k in range(3 if df % 2 else 2, df - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    if df % 2 == 0:
        return sine * total
    return 2 / math.pi * (theta + (sine * total if df > 1 else 0.0))
