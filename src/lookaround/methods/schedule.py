"""The learning rate as a function of how much of the run is behind it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Kind = Literal["cosine", "linear", "constant", "multi-step", "ramp", "inverse-sqrt", "wsd"]


@dataclass(frozen=True)
class Schedule:
    """What to multiply the peak learning rate by for each minibatch of a run.

    During the warm-up it rises linearly and reaches 1 at the warm-up's last minibatch. After that it is

    ``cosine``, ``linear``
        half a cosine, or a line, that would reach 0 one minibatch after the end;
    ``constant``
        1;
    ``multi-step``
        ``gamma`` to the number of milestones passed;
    ``ramp``
        1 up to the first of two milestones, a line to ``gamma`` at the second, then ``gamma`` (Izmailov et al. 2018, before SWA);
    ``inverse-sqrt``
        the square root of warm-up / minibatches so far (Vaswani et al. 2017);
    ``wsd``
        1, then a line to 0 over the last part ``cooldown`` (warm-up, stable, decay).

    It is a function of the minibatch alone, so a resumed run has nothing to restore.

    Args:
        kind: as above.
        total: minibatches of the run.
        warmup: minibatches of the warm-up.
        milestones: parts of the run, rising, each between 0 and 1.
        gamma: factor of a milestone.
        cooldown: part of the run.

    Raises:
        ValueError: for milestones that do not rise or a multi-step schedule without any.

    Example:
        >>> from lookaround.methods import Schedule
        >>> cosine = Schedule("cosine", total=6, warmup=2)
        >>> [round(cosine(minibatch), 3) for minibatch in range(6)]
        [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """

    kind: Kind
    total: int
    warmup: int = 0
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    cooldown: float = 0.2

    def __post_init__(self) -> None:
        inside = all(0 < milestone < 1 for milestone in self.milestones)
        rising = list(self.milestones) == sorted(set(self.milestones))
        if self.kind == "multi-step" and not (self.milestones and inside and rising):
            got = "/".join(f"{milestone:g}" for milestone in self.milestones) or "none"
            raise ValueError(f"milestones must rise and lie between 0 and 1, such as 0.3/0.6/0.8, got {got}")
        if self.kind == "ramp" and not (len(self.milestones) == 2 and inside and rising):
            raise ValueError(
                f"ramp takes two milestones that rise between 0 and 1, such as 0.5/0.9, got {self.milestones}"
            )

    def __call__(self, minibatch: int) -> float:
        """The factor for a minibatch, counted from 0."""
        if minibatch < self.warmup:
            return (minibatch + 1) / self.warmup
        if self.kind == "multi-step":
            return float(self.gamma ** sum(minibatch >= part * self.total for part in self.milestones))
        if self.kind == "ramp":
            first, second = (part * self.total for part in self.milestones)
            way = min(1.0, max(0.0, (minibatch - first) / (second - first)))
            return 1 - way * (1 - self.gamma)
        if self.kind == "inverse-sqrt":
            return math.sqrt(max(1, self.warmup) / (minibatch + 1))
        if self.kind == "wsd":
            return min(1.0, (self.total - minibatch) / max(1, round(self.cooldown * self.total)))
        part = (minibatch - self.warmup) / max(1, self.total - self.warmup)
        return {"cosine": 0.5 * (1 + math.cos(math.pi * part)), "linear": 1 - part, "constant": 1.0}[self.kind]
