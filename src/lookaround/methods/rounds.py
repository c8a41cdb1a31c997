"""Methods that go around and average: Lookahead, Lookaround, DART, SNOO, DiLoCo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from lookaround.methods.base import Setup
from lookaround.methods.settings import Averaging, Help
from lookaround.methods.trajectory import AveragedTrajectory, Branches, model_of_branches
from lookaround.optim import Lookahead, Lookaround
from lookaround.tasks.base import Minibatch

InnerState = Literal["maintain", "interpolate", "reset"]
Period = int | Literal["epoch"]


@dataclass(frozen=True, kw_only=True)
class Rounds(Averaging):
    """What these methods share."""

    k: Annotated[Period, Help("inner steps between two averages; epoch: those of an epoch", least=1)] = 5
    inner_state: Annotated[InnerState, Help("what an average does to the inner optimizer's momentum")] = "maintain"


@dataclass(frozen=True, kw_only=True)
class LookaheadSettings(Rounds):
    """Settings of lookahead."""

    alpha: Annotated[
        float | Literal["adaptive"],
        Help("weight of the fast weights in an average; adaptive: the best each time", least=0, most=1),
    ] = 0.5
    alpha_end: Annotated[
        float | None, Help("alpha at the run's end, towards which it goes; none: it stays", least=0, most=1)
    ] = None
    alpha_power: Annotated[float, Help("alpha goes with this power of the part of the run behind it", least=0)] = 3.0


@dataclass(frozen=True, kw_only=True)
class LookaroundSettings(Rounds):
    """Settings of lookaround."""

    alpha: Annotated[
        float, Help("weight of the branches' mean in an average; 1 is the published way", least=0, most=1)
    ] = 1.0
    start: Annotated[float, Help("part of the run in which one branch takes every copy", least=0, most=1)] = 0.0
    branches: Annotated[
        int | None, Help("number of branches, and copies of a minibatch; none: the task's", least=1)
    ] = None
    overlap: Annotated[
        int, Help("minibatches by which an average is taken in after its round, while the next has begun", least=0)
    ] = 0


@dataclass(frozen=True, kw_only=True)
class DartSettings(LookaroundSettings):
    """Settings of dart."""

    k: Annotated[Period, Help("inner steps between two averages; epoch: those of an epoch", least=1)] = "epoch"
    start: Annotated[float, Help("part of the run in which one branch takes every copy", least=0, most=1)] = 0.5


@dataclass(frozen=True, kw_only=True)
class OuterSettings(Rounds):
    """Settings of snoo."""

    k: Annotated[Period, Help("inner steps between two outer steps; epoch: those of an epoch", least=1)] = 20
    outer_lr: Annotated[float, Help("learning rate of the outer optimizer", least=0)] = 0.7
    outer_momentum: Annotated[float, Help("Nesterov momentum of the outer optimizer", least=0, most=1)] = 0.9


@dataclass(frozen=True, kw_only=True)
class DilocoSettings(OuterSettings):
    """Settings of diloco."""

    start: Annotated[float, Help("part of the run in which one branch takes every copy", least=0, most=1)] = 0.0
    branches: Annotated[
        int | None, Help("number of branches, and copies of a minibatch; none: the task's", least=1)
    ] = None
    overlap: Annotated[
        int, Help("minibatches by which an average is taken in after its round, while the next has begun", least=0)
    ] = 0


def lookahead(setup: Setup, settings: LookaheadSettings, inner: Optimizer) -> AveragedTrajectory:
    """Lookahead: φ moves by α towards the fast weights every k steps (Zhang et al. 2019)."""
    k = _period_of_one(setup, settings)
    optimizer = Lookahead(inner, k=k, alpha=settings.alpha, inner_state=settings.inner_state)
    if settings.alpha_end is None:
        return AveragedTrajectory(setup, optimizer)
    if settings.alpha == "adaptive":
        raise ValueError("alpha_end is where a fixed alpha goes; with alpha=adaptive leave it out")
    return Fading(setup, optimizer, settings.alpha, settings.alpha_end, settings.alpha_power)


def _period_of_one(setup: Setup, settings: Rounds) -> int:
    """One trajectory takes a step on every copy, so an epoch has more steps than minibatches."""
    return setup.epoch * setup.batches.branches if settings.k == "epoch" else settings.k


class Fading(AveragedTrajectory):
    """Lookahead whose α goes from one value to another, with a power of the part of the run behind it (Jordan 2024)."""

    def __init__(self, setup: Setup, optimizer: Lookahead, first: float, last: float, power: float) -> None:
        super().__init__(setup, optimizer)
        self._first, self._last, self._power = first, last, power

    def train_minibatch(self, minibatch: Minibatch) -> Tensor:
        way = (minibatch.position / self.setup.total) ** self._power
        self.optimizer.alpha = self._first + way * (self._last - self._first)
        return super().train_minibatch(minibatch)


def lookaround(setup: Setup, settings: LookaroundSettings, inner: Optimizer) -> Branches:
    """Lookaround: d branches, each on its own augmentation, replaced by their mean every k steps (Zhang et al. 2023)."""
    optimizer = Lookaround(
        inner,
        branches=setup.batches.branches,
        k=setup.epoch if settings.k == "epoch" else settings.k,
        alpha=settings.alpha,
        inner_state=settings.inner_state,
        model=model_of_branches(setup),
        start=round(settings.start * setup.total),
        mesh=setup.mesh,
        overlap=settings.overlap,
    )
    return Branches(setup, optimizer)


def dart(setup: Setup, settings: DartSettings, inner: Optimizer) -> Branches:
    """DART: Lookaround that begins late and averages rarely (Jain et al. 2023)."""
    return lookaround(setup, settings, inner)


def _outer(settings: OuterSettings) -> Callable[[list[Tensor]], Optimizer]:
    return partial(
        torch.optim.SGD,
        lr=settings.outer_lr,
        momentum=settings.outer_momentum,
        nesterov=settings.outer_momentum > 0,
    )


def snoo(setup: Setup, settings: OuterSettings, inner: Optimizer) -> AveragedTrajectory:
    """SNOO: φ moves by outer Nesterov momentum on its way to the fast weights every k steps (Kallusky et al. 2025)."""
    k = _period_of_one(setup, settings)
    return AveragedTrajectory(setup, Lookahead(inner, k=k, outer=_outer(settings), inner_state=settings.inner_state))


def diloco(setup: Setup, settings: DilocoSettings, inner: Optimizer) -> Branches:
    """DiLoCo: d branches, and outer Nesterov momentum on the way to their mean every k steps (Douillard et al. 2023)."""
    optimizer = Lookaround(
        inner,
        branches=setup.batches.branches,
        k=setup.epoch if settings.k == "epoch" else settings.k,
        outer=_outer(settings),
        inner_state=settings.inner_state,
        model=model_of_branches(setup),
        start=round(settings.start * setup.total),
        mesh=setup.mesh,
        overlap=settings.overlap,
    )
    return Branches(setup, optimizer)
