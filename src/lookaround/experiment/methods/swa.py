"""SWA and its folds in the last part of a run, over SGD or inside Lookahead and Lookaround."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from lookaround.averaging import FoldedSWA
from lookaround.experiment.batches import Minibatch
from lookaround.experiment.methods.base import Method, Setting
from lookaround.experiment.methods.norms import buffer_policy, reestimate, reestimated

# Samples that a fold should have at least, where the cycle is not configured.
_SAMPLES = 5


def late_part(setting: Setting, folds: int = 1) -> tuple[int, int, int]:
    """The part of a run that ends it with SWA: its first minibatch, the minibatches of a fold, and those from sample to sample.

    Raises:
        ValueError: for a run too short for the folds, or a cycle longer than a fold.
    """
    config = setting.config
    total = config.epochs * setting.batches.per_epoch
    length = max(1, round((1 - config.swa_start) * total / folds))
    if folds * length > total:
        raise ValueError(f"a run of {total} minibatches is too short for {folds} folds of SWA; train longer")
    cycle = config.swa_cycle or min(setting.batches.per_epoch, max(1, length // _SAMPLES))
    if cycle > length:
        raise ValueError(f"swa_cycle must be at most the {length} minibatches of a fold, got {cycle}")
    return total - folds * length, length, cycle


class LateSWA(Method):
    """Another method's training that ends with SWA at a constant learning rate (Guo et al. 2022, algorithms 1-3).

    The folds share the part of the run after ``swa_start`` equally, to the minibatch; the few minibatches that cannot
    be shared come before. Samples are the inner method's averages.

    Args:
        setting: what to train.
        inner: trains.
        folds: of the SWA part; whatever their number, they take the same minibatches.

    Raises:
        ValueError: for a run too short for the folds, or a cycle longer than a fold.
    """

    def __init__(self, setting: Setting, inner: Method, folds: int) -> None:
        super().__init__(setting)
        self.inner = inner
        self.start, length, cycle = late_part(setting, folds)
        self.swa = FoldedSWA(
            setting.model,
            iterations=folds * length,
            cycle=cycle,
            folds=folds,
            point=inner.averaged,
            buffers=buffer_policy(setting),
        )

    def learning_rate_factor(self, minibatch: int, minibatches_per_epoch: int) -> float:
        if minibatch >= self.start:
            return self.setting.config.swa_lr
        return super().learning_rate_factor(minibatch, minibatches_per_epoch)

    def train_minibatch(self, minibatch: Minibatch) -> Tensor:
        losses = self.inner.train_minibatch(minibatch)
        self.gradient_evaluations = self.inner.gradient_evaluations
        if minibatch.position >= self.start:
            self.swa.step()
        return losses

    def scale_learning_rate(self, factor: float) -> None:
        self.inner.scale_learning_rate(factor)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        if self.swa.average.count == 0:
            with self.inner.averaged():
                yield
            return
        with self.swa.average.averaged(), reestimated(self.setting):
            yield

    def finish(self) -> None:
        self.swa.average.copy_to(self.setting.model)
        reestimate(self.setting)

    def state_dict(self) -> dict[str, Any]:
        return {"inner": self.inner.state_dict(), "swa": self.swa.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.inner.load_state_dict(state["inner"])
        self.swa.load_state_dict(state["swa"])
        self.gradient_evaluations = self.inner.gradient_evaluations
