"""Ensembles joined with weight averages: of the members' SWA averages, and of Lookaround's network with independent members."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lookaround.averaging import RunningAverage, uniform
from lookaround.methods.base import Method, Setup, last_after
from lookaround.methods.members import Ensemble, MemberEnsemble, MemberSettings, copied_model
from lookaround.methods.norms import buffer_policy, reestimate
from lookaround.methods.swa import Swa, late_part
from lookaround.tasks.base import Minibatch


@dataclass(frozen=True, kw_only=True)
class AveragedMemberSettings(Swa, MemberSettings):
    """Settings of logit-ensemble+swa."""


class AveragedMembers(MemberEnsemble):
    """The mean of the logits of the members' own SWA averages ("Logit Ensemble + SWA", Zhang et al. 2023, Table 9).

    The late part of the run, its constant learning rate and its samples are those of swa. Before the first sample the members
    are the models as they are; at the end the model is left with member 0's average.

    Args:
        setup: what to train.
        settings: of the late part.
        inner: the members' optimizer.

    Raises:
        ValueError: for a cycle longer than the late part.
    """

    def __init__(self, setup: Setup, settings: AveragedMemberSettings, inner: torch.optim.Optimizer) -> None:
        super().__init__(setup, inner)
        self.rate = settings.swa_lr
        self.start, _, self.cycle = late_part(setup, settings)
        buffers = buffer_policy(setup)
        # Each member has an average of its own: what is in the model in its turn is sampled.
        self.averages = [
            RunningAverage(setup.model, uniform(), buffers=buffers, point=nullcontext)
            for _ in range(self.forward_passes)
        ]

    def learning_rate_factor(self, position: int) -> float:
        return self.rate if position >= self.start else super().learning_rate_factor(position)

    def train_minibatch(self, minibatch: Minibatch) -> Tensor:
        losses = super().train_minibatch(minibatch)
        self._sample(minibatch.position)
        return losses

    def at_once(self, position: int) -> int:
        return min(super().at_once(position), self._until_sampled(position))

    def train_together(self, minibatches: Sequence[Minibatch], factors: Sequence[float]) -> Iterator[Tensor]:
        rows = super().train_together(minibatches, factors)
        return last_after(rows, len(minibatches), lambda: self._sample(minibatches[-1].position))

    def _until_sampled(self, position: int) -> int:
        """The number of minibatches, from this one on, up to the next one after which a sample may be due."""
        return self.cycle - (position - self.start) % self.cycle

    def _sample(self, position: int) -> None:
        within = position - self.start + 1
        if within > 0 and within % self.cycle == 0:
            for branch in self.optimizer.around():
                self.averages[branch].update()

    def members(self) -> Sequence[nn.Module]:
        if not self.averages[0].count:
            return super().members()
        return [self._member(average) for average in self.averages]

    def _member(self, average: RunningAverage) -> nn.Module:
        member = copy.deepcopy(self.setup.model)
        average.copy_to(member)
        reestimate(replace(self.setup, model=member))
        return member.eval()

    def finish(self) -> None:
        self.averages[0].copy_to(self.setup.model)
        reestimate(self.setup)

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
        setup: what to train.
        single: makes the method of one network.
        others: makes the ensemble, which trains a network of its own from the same initial weights.
    """

    def __init__(
        self, setup: Setup, single: Callable[[Setup], Method], others: Callable[[Setup], MemberEnsemble]
    ) -> None:
        super().__init__(setup)
        self.other_model = copy.deepcopy(setup.model)
        self.single: Method = single(setup)
        self.others: MemberEnsemble = others(replace(setup, model=self.other_model))
        self.others.cost = self.single.cost = self.cost
        self.forward_passes = self.single.forward_passes + self.others.forward_passes

    def train_minibatch(self, minibatch: Minibatch) -> Tensor:
        turn = (self.single, self.others)[minibatch.position % 2]
        return turn.train_minibatch(minibatch)

    def scale_learning_rate(self, factor: float) -> None:
        self.single.scale_learning_rate(factor)
        self.others.scale_learning_rate(factor)

    def members(self) -> Sequence[nn.Module]:
        with self.single.averaged():
            first = copied_model(self.setup.model, self.setup.model.state_dict())
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
