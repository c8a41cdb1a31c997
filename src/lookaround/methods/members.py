"""d models that share the budget, member j trained on copy j of every minibatch: an ensemble of them, or their soups."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from lookaround.averaging import LogitEnsemble, greedy_soup, uniform_soup
from lookaround.methods.base import Method, Setup
from lookaround.methods.norms import reestimate, reestimated
from lookaround.methods.settings import Averaging, Help, Wrapping
from lookaround.methods.trajectory import Branches
from lookaround.optim import Lookaround
from lookaround.tasks.base import Predict

Weights = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class MemberSettings(Wrapping):
    """Settings of ensembles of members."""

    branches: Annotated[int | None, Help("number of members, and copies of a minibatch; none: the task's", least=1)] = (
        None
    )


@dataclass(frozen=True, kw_only=True)
class SoupSettings(MemberSettings, Averaging):
    """Settings of soups of members."""

    start: Annotated[
        float, Help("part of the run in which the members are one model, trained on every copy", least=0, most=1)
    ] = 0.5


class Members(Branches):
    """Branches of Lookaround that are never averaged.

    Args:
        setup: what to train.
        inner: the members' optimizer.
        start: the part of the run in which one model takes a step on every copy, before the members part.
    """

    def __init__(self, setup: Setup, inner: torch.optim.Optimizer, start: float = 0.0) -> None:
        # Passes before the start count for no round, and a round longer than the run never ends.
        branches = Lookaround(
            inner,
            branches=setup.batches.branches,
            k=setup.total + 1,
            model=setup.model,
            start=round(start * setup.total),
        )
        super().__init__(setup, branches)

    def model_of_branches(self) -> nn.Module:
        return self.setup.model

    def weights(self) -> list[Weights]:
        """A copy of each member's weights and buffers; the members go on from where they are."""
        model = self.setup.model
        return [_copied(model.state_dict()) for _ in self.optimizer.around()]


class Ensemble(Method):
    """A method whose prediction is the mean of several networks' logits."""

    @contextmanager
    def evaluation(self) -> Iterator[Predict]:
        yield LogitEnsemble(self.members()).eval()


class MemberEnsemble(Ensemble, Members):
    """The mean of the members' logits. They start from the same weights; the model is left with member 0's."""

    def __init__(self, setup: Setup, inner: torch.optim.Optimizer) -> None:
        super().__init__(setup, inner)
        self.forward_passes = setup.batches.branches

    @contextmanager
    def averaged(self) -> Iterator[None]:
        yield

    def members(self) -> Sequence[nn.Module]:
        return [copied_model(self.setup.model, weights) for weights in self.weights()]

    def finish(self) -> None:
        """Member 0 is in the model between minibatches."""


class UniformSoup(Members):
    """The mean of all members, which part from a common training phase."""

    def __init__(self, setup: Setup, settings: SoupSettings, inner: torch.optim.Optimizer) -> None:
        super().__init__(setup, inner, settings.start)
        self._finished = False

    @contextmanager
    def averaged(self) -> Iterator[None]:
        if self._finished:
            yield
            return
        with shown(self.setup.model, self._with_statistics(self.weights())), reestimated(self.setup):
            yield

    def finish(self) -> None:
        self.setup.model.load_state_dict(self._with_statistics(self.weights()))
        reestimate(self.setup)
        self._finished = True

    def _with_statistics(self, members: list[Weights]) -> Weights:
        soup = self.cook(members)
        if self.setup.norm_stats == "copy":
            soup |= {name: value for name, value in members[0].items() if "running_" in name}
        return soup

    def cook(self, members: list[Weights]) -> Weights:
        """The soup of the members."""
        return uniform_soup(members)


class GreedySoup(UniformSoup):
    """Members from the best to the worst, kept if the soup is then no worse on held-out data."""

    def cook(self, members: list[Weights]) -> Weights:
        return greedy_soup(members, self._score).weights

    def _score(self, weights: Weights) -> float:
        model = self.setup.model
        with shown(model, weights), reestimated(self.setup):
            model.eval()
            try:
                leading = self.setup.metrics[0]
                score = self.setup.validate(model)[leading.name]
                return -score if leading.lower else score
            finally:
                model.train()


def _copied(weights: Mapping[str, Tensor]) -> Weights:
    return {name: tensor.detach().clone() for name, tensor in weights.items()}


def copied_model(model: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """A network like ``model`` with these weights and buffers, in evaluation mode."""
    member = copy.deepcopy(model)
    member.load_state_dict(weights)
    return member.eval()


@contextmanager
def shown(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, the model holds ``weights``; afterwards what it held before."""
    before = _copied(model.state_dict())
    try:
        model.load_state_dict(weights)
        yield
    finally:
        model.load_state_dict(before)
