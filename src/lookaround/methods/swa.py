"""SWA and its folds in the last part of a run, over one trajectory or around a method that averages itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from lookaround.averaging import FoldedSWA
from lookaround.methods.base import Following, Method, Setup
from lookaround.methods.norms import buffer_policy, reestimate, reestimated
from lookaround.methods.settings import Averaging, Help

# Samples that a fold should have at least, where the cycle is not chosen.
_SAMPLES = 5


@dataclass(frozen=True, kw_only=True)
class Swa(Averaging):
    """Settings of swa, dswa and tswa."""

    swa_start: Annotated[float, Help("part of the run after which sampling begins", least=0, most=1)] = 0.75
    swa_lr: Annotated[float, Help("constant learning rate while it samples, as a fraction of the peak", least=0)] = 0.2
    swa_cycle: Annotated[
        int | None,
        Help("minibatches between samples; none: an epoch, or a fifth of a short fold", least=1),
    ] = None


def late_part(setup: Setup, settings: Swa, folds: int = 1) -> tuple[int, int, int]:
    """The part of a run that ends it with SWA: its first minibatch, the minibatches of a fold, and those from sample to sample.

    Raises:
        ValueError: for a run too short for the folds, or a cycle longer than a fold.
    """
    length = max(1, round((1 - settings.swa_start) * setup.total / folds))
    if folds * length > setup.total:
        raise ValueError(f"a run of {setup.total} minibatches is too short for {folds} folds of SWA; train longer")
    cycle = settings.swa_cycle or min(setup.epoch, max(1, length // _SAMPLES))
    if cycle > length:
        raise ValueError(f"swa_cycle must be at most the {length} minibatches of a fold, got {cycle}")
    return setup.total - folds * length, length, cycle


class LateSWA(Following):
    """Another method's training that ends with SWA at a constant learning rate (Guo et al. 2022, algorithms 1-3).

    The folds share the part of the run after ``swa_start`` equally, to the minibatch; the few minibatches that cannot be shared
    come before. Samples are the inner method's averages.

    Args:
        setup: what to train.
        settings: of the late part.
        inner: trains.
        folds: of the SWA part; whatever their number, they take the same minibatches.

    Raises:
        ValueError: for a run too short for the folds, or a cycle longer than a fold.
    """

    def __init__(self, setup: Setup, settings: Swa, inner: Method, folds: int = 1) -> None:
        super().__init__(setup, inner)
        self.rate = settings.swa_lr
        self.start, length, cycle = late_part(setup, settings, folds)
        self.swa = FoldedSWA(
            setup.model,
            iterations=folds * length,
            cycle=cycle,
            folds=folds,
            point=inner.averaged,
            restart=inner.restart,
            buffers=buffer_policy(setup),
        )

    def learning_rate_factor(self, position: int) -> float:
        return self.rate if position >= self.start else super().learning_rate_factor(position)

    def follow(self, position: int) -> None:
        if position >= self.start:
            self.swa.step()

    def until(self, position: int) -> int:
        return max(1, self.start - position)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        if self.swa.average.count == 0:
            with self.inner.averaged():
                yield
            return
        with self.swa.average.averaged(), reestimated(self.setup):
            yield

    def finish(self) -> None:
        self.swa.average.copy_to(self.setup.model)
        reestimate(self.setup)

    def state_dict(self) -> dict[str, Any]:
        return {"inner": self.inner.state_dict(), "swa": self.swa.state_dict()}

    def part_state_dict(self) -> dict[str, Any]:
        return {"inner": self.inner.part_state_dict(), "swa": self.swa.state_dict()}

    def whole_state_dict(self, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {**parts[0], "inner": self.inner.whole_state_dict([part["inner"] for part in parts])}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.inner.load_state_dict(state["inner"])
        self.swa.load_state_dict(state["swa"])
