"""What runs of two methods on the same seeds say about their difference: pure functions of numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Differences that vary less than this, relative to the values, are equal but for rounding.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Difference:
    """One method's value minus another's, paired by seed.

    Attributes:
        seeds: on which both have a value, in rising order; the n of all that follows.
        mean: of the differences.
        std: their sample standard deviation; None for one seed.
        interval: of the mean, by Student's t with n - 1 degrees of freedom. None where the differences do not vary (one
            seed, or all equal): then t says nothing.
        p: of a mean this far from 0, either way, if there were no difference (paired t test); None where ``interval`` is.
        above: seeds with a difference above 0.
        below: seeds with one below 0; the others are ties.
        p_sign: of a split as uneven, either way, if signs were tossed (exact sign test, ties left out; 1 where all are).
    """

    seeds: tuple[int, ...]
    mean: float
    std: float | None
    interval: tuple[float, float] | None
    p: float | None
    above: int
    below: int
    p_sign: float

    @property
    def ties(self) -> int:
        """Seeds without a difference."""
        return len(self.seeds) - self.above - self.below


def paired_difference(a: Mapping[int, float], b: Mapping[int, float], confidence: float = 0.95) -> Difference:
    """``a - b`` on the seeds that both have.

    Seeds share initial weights, minibatches and augmented copies, so the part of the spread that comes from them cancels,
    and the interval is narrower than that of two independent means.

    Args:
        a: a value for each seed.
        b: the same of another method.
        confidence: of the interval, between 0 and 1.

    Raises:
        ValueError: for no common seed, or a confidence that is none.

    Example:
        >>> from lookaround.experiment.compare import paired_difference
        >>> from lookaround.experiment.compare import paired_difference
        >>> found = paired_difference({0: 97.0, 1: 98.0, 2: 96.0}, {0: 96.0, 1: 96.5, 2: 95.5})
        >>> found.mean, f"{found.interval[0]:.2f} to {found.interval[1]:.2f}", f"{found.p:.4f}", found.above
        (1.0, '-0.24 to 2.24', '0.0742', 3)

    Source: Student, The probable error of a mean, 1908.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    seeds = tuple(sorted(a.keys() & b.keys()))
    if not seeds:
        raise ValueError(f"no seed in common: {_listed(a)} and {_listed(b)}")
    scale = _ROUNDING * max(max(abs(a[seed]), abs(b[seed])) for seed in seeds)
    rounded = [0.0 if abs(a[seed] - b[seed]) <= scale else a[seed] - b[seed] for seed in seeds]
    mean = statistics.fmean(rounded)
    std = statistics.stdev(rounded) if len(seeds) > 1 else None
    error = std / math.sqrt(len(seeds)) if std is not None and std > scale else None
    above, below = sum(value > 0 for value in rounded), sum(value < 0 for value in rounded)
    return Difference(
        seeds,
        mean,
        std,
        None if error is None else _interval(mean, error, len(seeds), confidence),
        None if error is None else t_test(mean / error, len(seeds) - 1),
        above,
        below,
        sign_test(above, below),
    )


def _listed(values: Mapping[int, float]) -> str:
    return f"seeds {' '.join(map(str, sorted(values)))}" if values else "no seed"


def _interval(mean: float, error: float, n: int, confidence: float) -> tuple[float, float]:
    from scipy.special import stdtrit

    half = error * float(stdtrit(n - 1, (1 + confidence) / 2))
    return mean - half, mean + half


def t_test(t: float, freedom: int) -> float:
    """The two-sided p value of Student's t.

    Example:
        >>> from lookaround.experiment.compare import t_test
        >>> from lookaround.experiment.compare import t_test
        >>> f"{t_test(12.706, 1):.4f}"
        '0.0500'
    """
    from scipy.special import stdtr

    return 2 * float(stdtr(freedom, -abs(t)))


def sign_test(above: int, below: int) -> float:
    """The two-sided exact p value of so many differences above and below 0: 2 P[X ≤ min] for X ~ Binomial(n, 1/2), at most 1.

    Five seeds that all agree give 0.0625, six 0.03125: fewer than six can never reach 0.05.

    Example:
        >>> from lookaround.experiment.compare import sign_test
        >>> from lookaround.experiment.compare import sign_test
        >>> sign_test(5, 0), sign_test(6, 0), sign_test(2, 2), sign_test(0, 0)
        (0.0625, 0.03125, 1.0, 1.0)
    """
    n = above + below
    tail = sum(math.comb(n, count) for count in range(min(above, below) + 1))
    return min(1.0, tail / 2.0 ** (n - 1))


def bonferroni(values: Sequence[float]) -> list[float]:
    """p values adjusted for as many comparisons as there are: multiplied by their number, at most 1.

    Example:
        >>> from lookaround.experiment.compare import bonferroni
        >>> from lookaround.experiment.compare import bonferroni
        >>> bonferroni([0.01, 0.3, 0.5])
        [0.03, 0.8999999999999999, 1.0]
    """
    return [min(1.0, len(values) * value) for value in values]


def holm(values: Sequence[float]) -> list[float]:
    """p values adjusted by Holm's step-down: as safe as Bonferroni's whatever the dependence, and never larger.

    The i-th smallest of m is multiplied by m - i + 1, and is at least as large as those before it. Rejecting where the
    result is at most 0.05 keeps the probability of any false rejection at 0.05.

    Example:
        >>> from lookaround.experiment.compare import holm
        >>> from lookaround.experiment.compare import holm
        >>> holm([0.04, 0.01, 0.03])
        [0.06, 0.03, 0.06]

    Source: Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    adjusted = [0.0] * len(values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = largest
    return adjusted
