"""Averages that stand in for a learning-rate decay: points of a constant rate, weighted as the decay would weight the steps."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lookaround.averaging.rules import Rule, window_of
from lookaround.averaging.states import require_whole

Shape = Callable[[float], float]


def _linear(x: float) -> float:
    return 1 - x


def _cosine(x: float) -> float:
    return (1 + math.cos(math.pi * x)) / 2


def _one_minus_sqrt(x: float) -> float:
    return 1 - math.sqrt(x)


_SHAPES: dict[str, Shape] = {"linear": _linear, "cosine": _cosine, "1-sqrt": _one_minus_sqrt}
_GRID = 1000


@dataclass(frozen=True)
class EmulatedDecay(Rule):
    name: str
    fraction: float
    total: int | None
    shape: Shape = field(repr=False, compare=False)

    @property
    def needs_total(self) -> bool:
        return self.total is None

    def weight(self, n: int, length: int) -> float:
        total = n if self.total is None else self.total
        window = window_of(self.fraction, total)
        place = n - (total - window) - 1
        if not 1 <= place < window:
            return float(place < 1)
        now = self.shape(place / window)
        after = self.shape((place + 1) / window) if place + 1 < window else 0.0
        # c_j / (c_0 + … + c_j) with c_j = w_j - w_(j+1); nothing has counted yet where the factor is still 1.
        return (now - after) / (1 - after) if after < 1 else 1.0

    def coefficients(self, steps: Sequence[float]) -> list[float]:
        window = window_of(self.fraction, len(steps))
        first, *later = steps[-window:]
        ends = [(step - first) / (later[-1] - first) * len(later) / window for step in later]
        factors = [1.0, *map(self.shape, ends), 0.0]
        return [0.0] * (len(steps) - window) + [a - b for a, b in itertools.pairwise(factors)]


def emulated_decay(
    shape: Literal["linear", "cosine", "1-sqrt"] | Shape = "linear",
    *,
    fraction: float = 1.0,
    total: int | None = None,
) -> Rule:
    """WSM, warm-up, stable and merge: the average of points of a constant rate that stands in for a decay of the rate.

    With θ_0, …, θ_k the last ``fraction`` of the points and w_i the factor that a decay would have put on the steps
    between θ_(i-1) and θ_i, the decayed run would have ended, the gradients taken as they are, at
    θ_0 + Σ w_i (θ_i - θ_(i-1)) = Σ c_j θ_j with c_j = w_j - w_(j+1), w_0 = 1 and w_(k+1) = 0. Those are the weights here.
    w_i is the shape at the end of the i-th interval, where the decay reaches 0 one mean interval after the last point: so
    the linear decay of equally spaced points is their uniform mean, as in the paper.

    In a :class:`~lookaround.averaging.RunningAverage` it needs the ``total`` and one mean; before the decay begins the
    average is the newest point, and points after the total no longer count. For stored checkpoints
    (:func:`~lookaround.averaging.snapshot_weights`) the total is their number, and the shape goes by their steps.

    Args:
        shape: The decay: ``"linear"``, ``"cosine"``, ``"1-sqrt"`` (1 - √x), or a function of its progress in [0, 1] that
            gives the factor in [0, 1] and never rises.
        fraction: The share of the points that the decay lasts, in (0, 1].
        total: The number of updates to come, at least 1.

    Raises:
        ValueError: ``shape`` is not known, rises or leaves [0, 1]; ``fraction`` is outside (0, 1]; ``total`` is below 1 or no
            whole number.

    References: Tian et al. 2025 (arXiv 2507.17634), "WSM: Decay-Free Learning Rate Schedule via Checkpoint Merging for
    LLM Pre-training", theorem 3.1.

    >>> from lookaround.averaging import emulated_decay, snapshot_weights
    >>> snapshot_weights(emulated_decay("linear"), [100, 200, 300, 400])
    [0.25, 0.25, 0.25, 0.25]
    >>> snapshot_weights(emulated_decay("1-sqrt"), [100, 200, 300, 400])  # 1 - √¼ = ½ of the first interval's steps
    [0.5, 0.207..., 0.158..., 0.133...]
    """
    if isinstance(shape, str) and shape not in _SHAPES:
        raise ValueError(f"shape must be one of {', '.join(_SHAPES)} or a function of the progress, got {shape!r}")
    curve = _SHAPES[shape] if isinstance(shape, str) else shape
    name = shape if isinstance(shape, str) else getattr(shape, "__qualname__", repr(shape))
    values = [curve(i / _GRID) for i in range(_GRID + 1)]
    if not (all(0 <= v <= 1 for v in values) and all(b <= a for a, b in itertools.pairwise(values))):
        raise ValueError(f"the shape {name!r} must lie in [0, 1] and never rise from 0 to 1")
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}")
    if total is not None:
        require_whole(total, "total", "; leave it out for stored checkpoints")
    return EmulatedDecay(name, fraction, total, curve)
