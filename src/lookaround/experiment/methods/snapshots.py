"""Snapshot ensembles (Huang et al. 2017): one trajectory with warm restarts, a member at the end of each cycle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

from lookaround.averaging import SnapshotCollector
from lookaround.experiment.batches import Minibatch
from lookaround.experiment.methods.base import Setting
from lookaround.experiment.methods.members import Ensemble
from lookaround.experiment.methods.trajectory import Trajectory


class Snapshots(Ensemble, Trajectory):
    """The mean of the logits of the models at the ends of equal cosine cycles; the model is left with the last one's.

    The cycles take the place of the configured schedule, but for its warm-up, with which every cycle begins, over half of it at
    most. The paper has none: without it, a peak that suits the other methods can diverge when the rate returns to it. Before the
    first cycle's end, the only member is the model as it is.

    Args:
        setting: what to train.
        optimizer: over the model's parameters; its learning rates are the peaks of the cycles.

    Raises:
        ValueError: for a run of fewer minibatches than cycles.
    """

    def __init__(self, setting: Setting, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(setting, optimizer)
        self.forward_passes = setting.config.snapshots
        self._total = setting.config.epochs * setting.batches.per_epoch
        if self._total < setting.config.snapshots:
            raise ValueError(
                f"snapshots must be at most the run's {self._total} minibatches, got {self.forward_passes}"
            )
        # Stepped in fractions of a cycle, so that the last cycle ends with the run whatever its length.
        self.scheduler = CosineAnnealingWarmRestarts(optimizer, T_0=1)
        self.collector = SnapshotCollector(setting.model, self.scheduler)

    def learning_rate_factor(self, minibatch: int, minibatches_per_epoch: int) -> float:
        """The warm-up alone, which the cycle's learning rate is multiplied by."""
        length = self._total / self.forward_passes
        warmup = min(self.setting.config.warmup_epochs * minibatches_per_epoch, length / 2)
        return min(1.0, (minibatch % length + 1) / max(1, round(warmup)))

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
            return [self.setting.model]
        return list(self.collector.ensemble().members)

    def state_dict(self) -> dict[str, Any]:
        own = {"scheduler": self.scheduler.state_dict(), "collector": self.collector.state_dict()}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.scheduler.load_state_dict(state["scheduler"])
        self.collector.load_state_dict(state["collector"])
