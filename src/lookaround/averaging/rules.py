"""Rules of running averages: how far each new point pulls a mean.

Every rule is written as m ← m + w (θ_n - m) with a weight w for the n-th point. With w = 1 at the first point, the
weights of all points always add up to one, whatever n: no average here is biased towards zero or towards the initial
weights.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from lookaround.averaging.states import require_whole


class Rule(ABC):
    """How an average over time weighs its points. Use :func:`uniform`, :func:`exponential`, :func:`tail`, :func:`lawa`,
    :func:`~lookaround.averaging.power` or :func:`~lookaround.averaging.emulated_decay`."""

    @property
    def sums(self) -> int:
        """How many running means the rule keeps, each as large as the model."""
        return 1

    @property
    def needs_total(self) -> bool:
        """Whether the rule cannot weigh points as they come, because it was not told how many there will be."""
        return False

    @abstractmethod
    def weight(self, n: int, length: int) -> float:
        """The weight of the ``n``-th point (from 1) in a mean that holds ``length`` points so far: at 1 the mean starts
        over, at 0 it stays."""

    def weights(self, n: int, lengths: Sequence[int]) -> list[float]:
        """The weight of the ``n``-th point in each running mean."""
        return [self.weight(n, length) for length in lengths]

    def hands_over(self, n: int, length: int) -> bool:
        """Whether after ``n`` points the younger mean, which holds ``length`` of them, takes the place of the older one."""
        return False

    def shares(self, lengths: Sequence[int]) -> list[float]:
        """How much of the average each running mean is."""
        return [1.0] + [0.0] * (len(lengths) - 1)

    def coefficients(self, steps: Sequence[float]) -> list[float]:
        """The share of each of several stored points in the average over them; see :func:`snapshot_weights`."""
        pulls = [self.weight(n, n - 1) for n in range(1, len(steps) + 1)]
        rest, result = 1.0, []
        for pull in reversed(pulls):
            result.append(rest * pull)
            rest *= 1 - pull
        return result[::-1]


def window_of(fraction: float, total: int) -> int:
    """⌈fraction · total⌉, the number of points in the last ``fraction`` of them.

    >>> from lookaround.averaging.rules import window_of
    >>> window_of(0.5, 7), window_of(0.1, 30)
    (4, 3)
    """
    return math.ceil(fraction * total - 1e-9)


@dataclass(frozen=True)
class Uniform(Rule):
    def weight(self, n: int, length: int) -> float:
        return 1 / (length + 1)


@dataclass(frozen=True)
class Exponential(Rule):
    decay: float
    bias_correction: bool
    warmup: float | None

    def weight(self, n: int, length: int) -> float:
        if length == 0:
            return 1.0
        if self.bias_correction:
            # (1 - β) / (1 - β^n), written so that β near 1 keeps its digits.
            return (1 - self.decay) / -math.expm1(n * math.log(self.decay)) if self.decay else 1.0
        return max(1 - self.decay, n**-self.warmup if self.warmup else 0.0)


@dataclass(frozen=True)
class Tail(Rule):
    fraction: float
    total: int | None

    @property
    def sums(self) -> int:
        return 1 if self.total or self.fraction == 1 else 2

    def weight(self, n: int, length: int) -> float:
        before = self.total - window_of(self.fraction, self.total) if self.total else 0
        return 1.0 if n <= before + 1 else 1 / (length + 1)

    def hands_over(self, n: int, length: int) -> bool:
        return length >= self.fraction * n

    def coefficients(self, steps: Sequence[float]) -> list[float]:
        window = window_of(self.fraction, len(steps))
        return [0.0] * (len(steps) - window) + [1 / window] * window


@dataclass(frozen=True)
class Lawa(Rule):
    window: int
    every: int

    @property
    def sums(self) -> int:
        return self.window

    def weight(self, n: int, length: int) -> float:
        return float(n <= self.every or n % self.every == 0)

    def weights(self, n: int, lengths: Sequence[int]) -> list[float]:
        place = (max(n // self.every, 1) - 1) % self.window
        return [self.weight(n, length) * (i == place) for i, length in enumerate(lengths)]

    def shares(self, lengths: Sequence[int]) -> list[float]:
        return [length / sum(lengths) for length in lengths]

    def coefficients(self, steps: Sequence[float]) -> list[float]:
        last = len(steps) - 1
        kept = range(last, -1, -self.every)[: self.window]
        return [1 / len(kept) * (i in kept) for i in range(len(steps))]


def uniform() -> Rule:
    """The mean of all points, each with weight 1/n: Polyak averaging when every step is a point, SWA when every cycle
    is.

    References: Polyak and Juditsky 1992; Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and Better
    Generalization".

    >>> from lookaround.averaging import uniform
    >>> [uniform().weight(n, n - 1) for n in (1, 2, 4)]
    [1.0, 0.5, 0.25]
    """
    return Uniform()


def exponential(decay: float, *, bias_correction: bool = False, warmup: float | None = None) -> Rule:
    """Exponential moving average: m ← decay · m + (1 - decay) θ_n, starting from the first point.

    The three variants differ in what they do with the early points, of which there are too few for the decay:

    - plain: the first point takes the place of all before it and keeps weight decay^(n-1) (``AveragedModel`` does
      this);
    - ``bias_correction``: point i has weight proportional to decay^(n-i) from the start, the EMA from zero divided by 1
      - decay^n (Adam's correction): the first points count no more than they should;
    - ``warmup=p``: the new point has weight max(1 - decay, n^-p). With p = 1 the average is uniform until it reaches
      the decay; with p = 2/3 it is the warm-up of timm's ``ModelEmaV3``.

    Args:
        decay: In [0, 1). 0 keeps the last point only.
        bias_correction: Weigh the early points without bias.
        warmup: The power p > 0, or None for no warm-up.

    Raises:
        ValueError: ``decay`` is outside [0, 1), ``warmup`` is not positive, or both corrections are asked for.

    >>> from lookaround.averaging import exponential
    >>> exponential(0.9).weight(2, 1), exponential(0.9, bias_correction=True).weight(2, 1), exponential(0.9, warmup=1).weight(2, 1)
    (0.09999999999999998, 0.5263157894736842, 0.5)
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay must be in [0, 1), got {decay}; for a mean of all points use uniform()")
    if warmup is not None and not warmup > 0:
        raise ValueError(f"warmup is the positive power p of the weight n^-p, got {warmup}; use None for no warm-up")
    if bias_correction and warmup is not None:
        raise ValueError("bias_correction and warmup are two answers to the same question; choose one of them")
    return Exponential(decay, bias_correction, warmup)


def tail(fraction: float, *, total: int | None = None) -> Rule:
    """Tail averaging: the uniform mean of the last ``fraction`` of the points, without storing any of them.

    With ``total``, the number of points there will be, the window is exact at the end: it holds the last ⌈fraction ·
    total⌉ points. Before it opens, the average is the newest point.

    Without ``total`` the end may come at any time. Two means are kept: the older one is the average; the younger one
    was started later and takes over as soon as it holds ``fraction`` of all points by itself, when the next one is
    started. So after n points the average is the exact uniform mean of the last L points with fraction · n ≤ L <
    fraction (2 - fraction) n + 1: for the last half, of between a half and three quarters of all points.

    Args:
        fraction: In (0, 1].
        total: The number of updates to come, at least 1. Later points, if any, join the window.

    Raises:
        ValueError: ``fraction`` is outside (0, 1], or ``total`` is below 1 or no whole number.

    References: Jain et al. 2018, "Parallelizing Stochastic Gradient Descent for Least Squares Regression"; Rakhlin et
    al. 2012.

    >>> from lookaround.averaging import tail
    >>> tail(0.5, total=10).sums, tail(0.5).sums
    (1, 2)
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}")
    if total is not None:
        require_whole(total, "total", "; leave it out if the number of points is not known")
    return Tail(fraction, total)


def lawa(window: int, *, every: int = 1) -> Rule:
    """LAWA, latest weight averaging: the mean of the last ``window`` points at a spacing of ``every`` updates.

    After update n it holds the points of the last ``window`` multiples of ``every`` up to n, of all of them while they
    are fewer. Before the first one it is the newest point. Nothing but storing them gives this mean exactly, so it keeps
    ``window`` sets of weights; ``offload`` keeps them in host memory. An update that is no multiple costs nothing.

    Args:
        window: The number of points k, at least 1.
        every: The spacing ν in updates, at least 1. The paper finds widely spaced points better than consecutive ones.

    Raises:
        ValueError: ``window`` or ``every`` is below 1 or no integer.

    References: Sanyal et al. 2023 (arXiv 2306.03241), "Early Weight Averaging meets High Learning Rates for LLM
    Pre-training"; Kaddour 2022 (arXiv 2209.14981).

    >>> from lookaround.averaging import lawa, snapshot_weights
    >>> snapshot_weights(lawa(2), [100, 200, 300, 400])
    [0.0, 0.0, 0.5, 0.5]
    """
    for name, value in (("window", window), ("every", every)):
        require_whole(value, name)
    return Lawa(window, every)


def snapshot_weights(rule: Rule, steps: Sequence[float]) -> list[float]:
    """The weights with which stored checkpoints of one run make the average of ``rule``: coefficients of a soup.

    The checkpoints are the points of the rule. What depends on time (:func:`~lookaround.averaging.power`,
    :func:`~lookaround.averaging.emulated_decay`) goes by ``steps``; a window (:func:`tail`, :func:`lawa`) is counted back
    from the last checkpoint, and so exact without a total; the others go by the number of checkpoints.

    Args:
        rule: What makes the average.
        steps: The step at which each checkpoint was taken, increasing, from a positive one.

    Returns:
        One weight for each checkpoint; they add up to one.

    Raises:
        ValueError: There are no steps, or they do not increase from a positive one.

    >>> from lookaround.averaging import exponential, snapshot_weights, tail
    >>> snapshot_weights(tail(0.5), [1000, 2000, 3000, 4000])
    [0.0, 0.0, 0.5, 0.5]
    >>> snapshot_weights(exponential(0.5), [1000, 2000, 3000])
    [0.25, 0.25, 0.5]
    """
    times = [float(step) for step in steps]
    if (
        not times
        or not times[0] > 0
        or not all(a < b < math.inf for a, b in zip(times, [*times[1:], 2 * times[-1]], strict=True))
    ):
        raise ValueError(f"steps must increase from a positive one, got {list(steps)}")
    return rule.coefficients(times)
