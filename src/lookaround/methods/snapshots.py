"""Snapshot ensembles (Huang et al. 2017): one trajectory with warm restarts, a member at the end of each cycle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

from lookaround.averaging import SnapshotCollector
from lookaround.methods.base import Setup
from lookaround.methods.members import Ensemble
from lookaround.methods.settings import Help, Wrapping
from lookaround.methods.trajectory import Trajectory
from lookaround.tasks.base import Minibatch


@dataclass(frozen=True, kw_only=True)
class SnapshotSettings(Wrapping):
    """Settings of snapshot-ensemble."""

    cycles: Annotated[int, Help("cosine cycles, and so members", least=1)] = 4


class Snapshots(Ensemble, Trajectory):
    """The mean of the logits of the models at the ends of equal cosine cycles; the model is left with the last one's.

    The cycles take the place of the configured schedule, but for its warm-up, with which every cycle begins, over half of it at
    most. The paper has none: without it, a peak that suits the other methods can diverge when the rate returns to it. Before the
    first cycle's end, the only member is the model as it is.

    Args:
        setup: what to train.
        settings: number of cycles.
        optimizer: over the model's parameters; its learning rates are the peaks of the cycles.

    Raises:
        ValueError: for a run of fewer minibatches than cycles.
    """

    def __init__(self, setup: Setup, settings: SnapshotSettings, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(setup, optimizer)
        self.forward_passes = settings.cycles
        self._total = setup.total
        if self._total < settings.cycles:
            raise ValueError(f"cycles must be at most the run's {self._total} minibatches, got {settings.cycles}")
        # Stepped in fractions of a cycle, so that the last cycle ends with the run whatever its length.
        self.scheduler = CosineAnnealingWarmRestarts(optimizer, T_0=1)
        self.collector = SnapshotCollector(setup.model, self.scheduler)

    def learning_rate_factor(self, position: int) -> float:
        """The warm-up alone, which the cycle's learning rate is multiplied by."""
        length = self._total / self.forward_passes
        warmup = min(self.setup.schedule.warmup, length / 2)
        return min(1.0, (position % length + 1) / max(1, round(warmup)))

    def scale_learning_rate(self, factor: float) -> None:
        for group, rate in zip(self.optimizer.param_groups, self.scheduler.get_last_lr(), strict=True):
            group["lr"] = factor * rate

    def train_minibatch(self, minibatch: Minibatch) -> Tensor:
        losses = super().train_minibatch(minibatch)
        self.scheduler.step((minibatch.position + 1) * self.forward_passes / self._total)
        self.collector.step()
        return losses

    def members(self) -> Sequence[nn.Module]:
        if not len(self.collector):
            return [self.setup.model]
        return list(self.collector.ensemble().members)

    def state_dict(self) -> dict[str, Any]:
        own = {"scheduler": self.scheduler.state_dict(), "collector": self.collector.state_dict()}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.scheduler.load_state_dict(state["scheduler"])
        self.collector.load_state_dict(state["collector"])
