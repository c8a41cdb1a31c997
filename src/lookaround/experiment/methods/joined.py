"""Ensembles joined with weight averages: of the members' SWA averages, and of Lookaround's network with independent members."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lookaround.averaging import RunningAverage, uniform
from lookaround.experiment.batches import Minibatch
from lookaround.experiment.methods.base import Method, Setting
from lookaround.experiment.methods.members import Ensemble, MemberEnsemble, copied_model
from lookaround.experiment.methods.norms import buffer_policy, reestimate
from lookaround.experiment.methods.swa import late_part


class AveragedMembers(MemberEnsemble):
    """The mean of the logits of the members' own SWA averages ("Logit Ensemble + SWA", Zhang et al. 2023, Table 9).

    The late part of the run, its constant learning rate and its samples are those of swa. Before the first sample the members
    are the models as they are; at the end the model is left with member 0's average.

    Args:
        setting: what to train.
        inner: the members' optimizer.

    Raises:
        ValueError: for a cycle longer than the late part.
    """

    def __init__(self, setting: Setting, inner: torch.optim.Optimizer) -> None:
        super().__init__(setting, inner)
        self.start, _, self.cycle = late_part(setting)
        buffers = buffer_policy(setting)
        self.averages = [
            RunningAverage(setting.model, uniform(), buffers=buffers) for _ in range(setting.config.branches)
        ]

    def learning_rate_factor(self, minibatch: int, minibatches_per_epoch: int) -> float:
        if minibatch >= self.start:
            return self.setting.config.swa_lr
        return super().learning_rate_factor(minibatch, minibatches_per_epoch)

    def train_minibatch(self, minibatch: Minibatch) -> Tensor:
        losses = super().train_minibatch(minibatch)
        within = minibatch.position - self.start + 1
        if within > 0 and within % self.cycle == 0:
            for branch in self.optimizer.around():
                self.averages[branch].update()
        return losses

    def members(self) -> Sequence[nn.Module]:
        if not self.averages[0].count:
            return super().members()
        return [self._member(average) for average in self.averages]

    def _member(self, average: RunningAverage) -> nn.Module:
        member = copy.deepcopy(self.setting.model)
        average.copy_to(member)
        reestimate(replace(self.setting, model=member))
        return member.eval()

    def finish(self) -> None:
        self.averages[0].copy_to(self.setting.model)
        reestimate(self.setting)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "averages": [average.state_dict() for average in self.averages]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        for average, saved in zip(self.averages, state["averages"], strict=True):
            average.load_state_dict(saved)


class JoinedEnsemble(Ensemble):
    """The mean of the logits of one method's network and of independent members ("Ours + Logit Ensemble", Zhang et al. 2023, Table 5).

    The two share the budget: minibatches go to the one and to the others in turn. The model is left with the first's weights.

    Args:
        setting: what to train.
        single: makes the method of one network.
        others: makes the ensemble, which trains a network of its own from the same initial weights.
    """

    def __init__(
        self, setting: Setting, single: Callable[[Setting], Method], others: Callable[[Setting], MemberEnsemble]
    ) -> None:
        super().__init__(setting)
        self.other_model = copy.deepcopy(setting.model)
        self.single: Method = single(setting)
        self.others: MemberEnsemble = others(replace(setting, model=self.other_model))
        self.forward_passes = self.single.forward_passes + self.others.forward_passes

    def train_minibatch(self, minibatch: Minibatch) -> Tensor:
        turn = (self.single, self.others)[minibatch.position % 2]
        losses = turn.train_minibatch(minibatch)
        self.gradient_evaluations = self.single.gradient_evaluations + self.others.gradient_evaluations
        return losses

    def scale_learning_rate(self, factor: float) -> None:
        self.single.scale_learning_rate(factor)
        self.others.scale_learning_rate(factor)

    def members(self) -> Sequence[nn.Module]:
        with self.single.averaged():
            first = copied_model(self.setting.model, self.setting.model.state_dict())
        return [first, *self.others.members()]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        with self.single.averaged():
            yield

    def finish(self) -> None:
        self.single.finish()
        self.others.finish()

    def state_dict(self) -> dict[str, Any]:
        parts = {"single": self.single.state_dict(), "others": self.others.state_dict()}
        return {**parts, "other_model": self.other_model.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.other_model.load_state_dict(state["other_model"])
        self.single.load_state_dict(state["single"])
        self.others.load_state_dict(state["others"])
        self.gradient_evaluations = self.single.gradient_evaluations + self.others.gradient_evaluations
