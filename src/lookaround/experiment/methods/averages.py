"""Averages beside a trajectory that never return to it: EMA over all steps, SWAD over a window."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lookaround.averaging import SWAD, RunningAverage, exponential
from lookaround.experiment.batches import Minibatch
from lookaround.experiment.methods.base import Setting
from lookaround.experiment.methods.norms import buffer_policy, reestimate, reestimated
from lookaround.experiment.methods.trajectory import Trajectory
from lookaround.optim.checks import NotFiniteError


class Averaged(Trajectory):
    """A trajectory and an average of all its points, the weights after each step.

    Args:
        setting: what to train.
        optimizer: over the model's parameters.
        average: of the model.
    """

    def __init__(self, setting: Setting, optimizer: torch.optim.Optimizer, average: RunningAverage | SWAD) -> None:
        super().__init__(setting, optimizer)
        self.average: RunningAverage | SWAD = average

    def _step(self, minibatch: Minibatch, branch: int) -> Tensor:
        loss = super()._step(minibatch, branch)
        self.average.update()
        return loss

    @property
    def _begun(self) -> bool:
        return self.gradient_evaluations > 0

    @contextmanager
    def averaged(self) -> Iterator[None]:
        if not self._begun:
            yield
            return
        with self.average.averaged(), reestimated(self.setting):
            yield

    def finish(self) -> None:
        self.average.copy_to(self.setting.model)
        reestimate(self.setting)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "average": self.average.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.average.load_state_dict(state["average"])


def ema(setting: Setting, optimizer: torch.optim.Optimizer) -> Averaged:
    """The exponential moving average of the configured decay; it follows closely while there are few points."""
    rule = exponential(setting.config.ema_decay, warmup=2 / 3)
    return Averaged(setting, optimizer, RunningAverage(setting.model, rule, buffers=buffer_policy(setting)))


class DenseWindow(Averaged):
    """SWAD (Cha et al. 2021): the mean over a window that the loss on held-out training images opens and closes.

    Until the window opens, and if it never does, the result is the last model.
    """

    average: SWAD

    def __init__(self, setting: Setting, optimizer: torch.optim.Optimizer) -> None:
        config = setting.config
        window = SWAD(
            setting.model,
            converge=config.swad_converge,
            tolerance=config.swad_tolerance,
            rate=config.swad_rate,
            buffers=buffer_policy(setting),
        )
        super().__init__(setting, optimizer, window)
        self.every = config.swad_every or setting.batches.per_epoch

    @property
    def _begun(self) -> bool:
        return self.average.opened

    def train_minibatch(self, minibatch: Minibatch) -> Tensor:
        losses = super().train_minibatch(minibatch)
        if (minibatch.position + 1) % self.every == 0 and not self.average.closed:
            model = self.setting.model
            loss = self.setting.validate(model.eval()).nll
            model.train()
            if not math.isfinite(loss):
                raise NotFiniteError(f"the loss on held-out images is {loss}", "the loss on held-out images")
            self.average.evaluated(loss)
        return losses

    def finish(self) -> None:
        self.average.copy_to(self.setting.model)
        if self._begun:
            reestimate(self.setting)
