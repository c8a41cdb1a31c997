"""Methods that are a torch optimizer: one trajectory, its average, or branches that take turns in the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from lookaround.experiment.batches import Minibatch
from lookaround.experiment.methods.base import Method, Setting
from lookaround.experiment.methods.norms import reestimate, reestimated
from lookaround.optim import Lookahead, Lookaround


class Trajectory(Method):
    """One weight vector that takes a step on each copy of the minibatch in turn.

    Args:
        setting: what to train.
        optimizer: over the model's parameters; its learning rates are the peaks of the schedule.
    """

    def __init__(self, setting: Setting, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(setting)
        self.optimizer = optimizer
        self._peaks: list[float] = [group["lr"] for group in optimizer.param_groups]

    def train_minibatch(self, minibatch: Minibatch) -> Tensor:
        return torch.stack([self._step(minibatch, branch) for branch in self.turns(minibatch)])

    def turns(self, minibatch: Minibatch) -> Iterable[int]:
        """The copies in the order of their steps."""
        return range(minibatch.branches)

    def _step(self, minibatch: Minibatch, branch: int) -> Tensor:
        images, labels = minibatch.copy(branch), minibatch.labels
        losses: list[Tensor] = []

        def closure() -> float:
            self.optimizer.zero_grad()
            loss = self.setting.loss(self.setting.model, images, labels)
            loss.backward()
            losses.append(loss.detach())
            return loss  # type: ignore[return-value]

        self.optimizer.step(closure)
        self.gradient_evaluations += len(losses)
        return losses[0]

    def scale_learning_rate(self, factor: float) -> None:
        for group, peak in zip(self.optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = factor * peak

    def averaged(self) -> AbstractContextManager[None]:
        return nullcontext()

    def finish(self) -> None:
        """The trajectory's last point is the result."""

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "gradient_evaluations": self.gradient_evaluations}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.gradient_evaluations = state["gradient_evaluations"]


class AveragedTrajectory(Trajectory):
    """One trajectory with an average written back into it every k steps."""

    optimizer: Lookahead | Lookaround

    @contextmanager
    def averaged(self) -> Iterator[None]:
        with self.optimizer.averaged(), reestimated(self.setting):
            yield

    def finish(self) -> None:
        self.optimizer.average()
        reestimate(self.setting)


class Branches(AveragedTrajectory):
    """d trajectories, each on its own copy of every minibatch, averaged every k minibatches."""

    optimizer: Lookaround

    def turns(self, minibatch: Minibatch) -> Iterable[int]:
        return self.optimizer.around()
