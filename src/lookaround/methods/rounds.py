"""Methods that go around and average: Lookahead, Lookaround, DART."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from torch.optim import Optimizer

from lookaround.methods.base import Setup
from lookaround.methods.settings import Averaging, Help
from lookaround.methods.trajectory import AveragedTrajectory, Branches
from lookaround.optim import Lookahead, Lookaround

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


@dataclass(frozen=True, kw_only=True)
class DartSettings(LookaroundSettings):
    """Settings of dart."""

    k: Annotated[Period, Help("inner steps between two averages; epoch: those of an epoch", least=1)] = "epoch"
    start: Annotated[float, Help("part of the run in which one branch takes every copy", least=0, most=1)] = 0.5


def lookahead(setup: Setup, settings: LookaheadSettings, inner: Optimizer) -> AveragedTrajectory:
    """Lookahead: φ moves by α towards the fast weights every k steps (Zhang et al. 2019)."""
    # One trajectory takes a step on every copy, so an epoch has more steps than minibatches.
    k = setup.epoch * setup.batches.branches if settings.k == "epoch" else settings.k
    return AveragedTrajectory(setup, Lookahead(inner, k=k, alpha=settings.alpha, inner_state=settings.inner_state))


def lookaround(setup: Setup, settings: LookaroundSettings, inner: Optimizer) -> Branches:
    """Lookaround: d branches, each on its own augmentation, replaced by their mean every k steps (Zhang et al. 2023)."""
    optimizer = Lookaround(
        inner,
        branches=setup.batches.branches,
        k=setup.epoch if settings.k == "epoch" else settings.k,
        alpha=settings.alpha,
        inner_state=settings.inner_state,
        # Without the model all branches write the same running statistics, as they come.
        model=None if setup.norm_stats == "copy" else setup.model,
        start=round(settings.start * setup.total),
        mesh=setup.mesh,
    )
    return Branches(setup, optimizer)


def dart(setup: Setup, settings: DartSettings, inner: Optimizer) -> Branches:
    """DART: Lookaround that begins late and averages rarely (Jain et al. 2023)."""
    return lookaround(setup, settings, inner)
