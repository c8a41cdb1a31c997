"""Averages beside a training that never return to it: EMA, tail, LAWA and the like over its points, SWAD over a window."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

from lookaround.averaging import SWAD, RunningAverage, emulated_decay, exponential, lawa, power, tail
from lookaround.averaging.rules import Rule
from lookaround.methods.base import Following, Method, Setup
from lookaround.methods.norms import buffer_policy, reestimate, reestimated
from lookaround.methods.settings import Averaging, Help
from lookaround.methods.trajectory import AveragedTrajectory, Trajectory
from lookaround.optim.checks import NotFiniteError


@dataclass(frozen=True, kw_only=True)
class Sampling(Averaging):
    """How often an average takes a point."""

    every: Annotated[
        int | None,
        Help("minibatches from point to point; none: each step, or each minibatch of a method that averages", least=1),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Ema(Sampling):
    """Settings of ema."""

    decay: Annotated[
        float, Help("decay from point to point, below 1; the average follows faster while there are few", least=0)
    ] = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.decay < 1:
            raise ValueError(f"decay must be below 1, got {self.decay:g}; the mean of all points is tail:fraction=1")


@dataclass(frozen=True, kw_only=True)
class Tail(Sampling):
    """Settings of tail."""

    fraction: Annotated[float, Help("part of the run, its last, whose points are averaged", least=0, most=1)] = 0.5


@dataclass(frozen=True, kw_only=True)
class Lawa(Averaging):
    """Settings of lawa."""

    window: Annotated[int, Help("points in the mean; as many sets of weights are kept", least=1)] = 6
    every: Annotated[int | None, Help("minibatches from point to point; none: an epoch", least=1)] = None


@dataclass(frozen=True, kw_only=True)
class PowerEma(Sampling):
    """Settings of power-ema."""

    width: Annotated[float, Help("relative width of the average: a part of the run so far", least=0, most=0.2886)] = 0.1


@dataclass(frozen=True, kw_only=True)
class Wsm(Sampling):
    """Settings of wsm."""

    shape: Annotated[
        Literal["linear", "cosine", "1-sqrt"], Help("decay of the rate that the average stands in for")
    ] = "1-sqrt"
    fraction: Annotated[float, Help("part of the run, its last, that the decay lasts", least=0, most=1)] = 0.4


@dataclass(frozen=True, kw_only=True)
class Swad(Averaging):
    """Settings of swad."""

    evaluate: Annotated[
        int | None, Help("minibatches between evaluations on held-out data; none: an epoch", least=1)
    ] = None
    converge: Annotated[
        int, Help("the window opens at a loss below which none of the next converge - 1 falls", least=1)
    ] = 3
    tolerance: Annotated[int, Help("evaluations above the limit after which the window closes", least=1)] = 6
    rate: Annotated[float, Help("the limit, as a multiple of the mean loss when the window opens", least=1)] = 1.3


class Averaged(Following):
    """Another method's training and an average of its points.

    The points of a single trajectory are the weights after each step; those of a method that averages itself are its averages, after
    each minibatch.

    Args:
        setup: what to train.
        inner: trains.
        average: of the model.
        every: minibatches from point to point, or None.
    """

    def __init__(self, setup: Setup, inner: Method, average: RunningAverage | SWAD, every: int | None = None) -> None:
        super().__init__(setup, inner)
        self.average: RunningAverage | SWAD = average
        self.every = every or 1
        self.each_step = every is None and steps_are_points(inner)
        if self.each_step:
            assert isinstance(inner, Trajectory)
            inner.after_step = average.update

    def follow(self, position: int) -> None:
        if not self.each_step and (position + 1) % self.every == 0:
            with self.inner.averaged():
                self.average.update()

    def until(self, position: int) -> int:
        return self.every - position % self.every

    def learning_rate_factor(self, position: int) -> float:
        return self.inner.learning_rate_factor(position)

    @property
    def _begun(self) -> bool:
        return self.average.count > 0  # type: ignore[union-attr]  # swad says it otherwise

    @contextmanager
    def averaged(self) -> Iterator[None]:
        if not self._begun:
            with self.inner.averaged():
                yield
            return
        with self.average.averaged(), reestimated(self.setup):
            yield

    def finish(self) -> None:
        if not self._begun:
            self.inner.finish()
            return
        self.average.copy_to(self.setup.model)
        reestimate(self.setup)

    def state_dict(self) -> dict[str, Any]:
        return {"inner": self.inner.state_dict(), "average": self.average.state_dict()}

    def part_state_dict(self) -> dict[str, Any]:
        return {"inner": self.inner.part_state_dict(), "average": self.average.state_dict()}

    def whole_state_dict(self, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {**parts[0], "inner": self.inner.whole_state_dict([part["inner"] for part in parts])}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.inner.load_state_dict(state["inner"])
        self.average.load_state_dict(state["average"])


def steps_are_points(inner: Method) -> bool:
    """Whether a method is one trajectory, every point of which may be averaged."""
    return isinstance(inner, Trajectory) and not isinstance(inner, AveragedTrajectory)


def running(setup: Setup, every: int | None, inner: Method, rule: Callable[[int], Rule]) -> Averaged:
    """A running average of a rule that may depend on the number of points there will be."""
    each_step = every is None and steps_are_points(inner)
    points = setup.total * setup.batches.branches if each_step else setup.total // (every or 1)
    average = RunningAverage(setup.model, rule(max(1, points)), buffers=buffer_policy(setup))
    return Averaged(setup, inner, average, every)


def ema(setup: Setup, settings: Ema, inner: Method) -> Averaged:
    """The exponential moving average of the points."""
    return running(setup, settings.every, inner, lambda points: exponential(settings.decay, warmup=2 / 3))


def tail_average(setup: Setup, settings: Tail, inner: Method) -> Averaged:
    """The uniform mean of the last part of the points (Polyak-Ruppert, tail averaging)."""
    return running(setup, settings.every, inner, lambda points: tail(settings.fraction, total=points))


def lawa_average(setup: Setup, settings: Lawa, inner: Method) -> Averaged:
    """The mean of the last few of widely spaced points (Kaddour 2022; Sanyal et al. 2023)."""
    return running(setup, settings.every or setup.epoch, inner, lambda points: lawa(settings.window))


def power_ema(setup: Setup, settings: PowerEma, inner: Method) -> Averaged:
    """The moving average whose memory is always the same part of the run so far (Karras et al. 2024)."""
    return running(setup, settings.every, inner, lambda points: power(settings.width))


def wsm(setup: Setup, settings: Wsm, inner: Method) -> Averaged:
    """The average that stands in for a decay of the learning rate, best with ``schedule=constant``."""
    rule = partial(emulated_decay, settings.shape, fraction=settings.fraction)
    return running(setup, settings.every, inner, lambda points: rule(total=points))


class DenseWindow(Averaged):
    """SWAD (Cha et al. 2021): the mean over a window that the loss on held-out data opens and closes.

    Until the window opens, and if it never does, the result is the last model.
    """

    average: SWAD

    def __init__(self, setup: Setup, settings: Swad, inner: Method) -> None:
        window = SWAD(
            setup.model,
            converge=settings.converge,
            tolerance=settings.tolerance,
            rate=settings.rate,
            buffers=buffer_policy(setup),
        )
        super().__init__(setup, inner, window)
        self.evaluate_every = settings.evaluate or setup.epoch
        self.loss = next(metric.name for metric in setup.metrics if metric.loss)

    @property
    def _begun(self) -> bool:
        return self.average.opened

    def follow(self, position: int) -> None:
        super().follow(position)
        if (position + 1) % self.evaluate_every == 0 and not self.average.closed:
            with self.inner.evaluation() as predict:
                loss = self.setup.validate(predict)[self.loss]
            if not math.isfinite(loss):
                raise NotFiniteError(f"the loss on held-out data is {loss}", "the loss on held-out data")
            self.average.evaluated(loss)

    def until(self, position: int) -> int:
        return min(super().until(position), self.evaluate_every - position % self.evaluate_every)
