"""What the training loop asks of a method, whatever the method averages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lookaround.methods.schedule import Schedule
from lookaround.methods.settings import NormStats
from lookaround.tasks.base import Batch, Batches, Metric, Minibatch, Predict

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True)
class Setup:
    """What a method is given to work with.

    Attributes:
        model: a freshly initialized network on the training device.
        loss: the mean training loss of a model, as it is now, on a copy of a minibatch.
        inner: makes the inner optimizer over a model's parameters.
        batches: the minibatches of the run.
        schedule: the learning rate's factor for each minibatch.
        total: minibatches of the run.
        epoch: minibatches in an epoch of the budget.
        norm_stats: what becomes of norm layers' running statistics when weights are averaged.
        metrics: the task's.
        held_out: the metrics on held-out data, for methods that choose by them; None where none is set aside.
        precision: a context of the precision in which training's forward passes run.
        clip: the gradient's norm is clipped to this before each step; None: it is not.
        mesh: of the processes that the method's branches are spread over; None: they are all here.
    """

    model: nn.Module
    loss: Callable[[nn.Module, Batch], Tensor]
    inner: Callable[[nn.Module], Optimizer]
    batches: Batches
    schedule: Schedule
    total: int
    epoch: int
    norm_stats: NormStats = "average"
    metrics: Sequence[Metric] = ()
    held_out: Callable[[Predict], Mapping[str, float]] | None = None
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext
    clip: float | None = None
    mesh: DeviceMesh | None = None

    def validate(self, predict: Predict) -> Mapping[str, float]:
        """The metrics on held-out data.

        Raises:
            ValueError: where there is none.
        """
        if self.held_out is None:
            raise ValueError("this method chooses by held-out data, and none is set aside; choose another")
        return self.held_out(predict)


@dataclass
class Cost:
    """What a method has used of the budget so far.

    Attributes:
        gradients: of minibatches (T-budget).
        units: samples or tokens whose gradients these were.
    """

    gradients: int = 0
    units: int = 0


class Method(ABC):
    """One row of the comparison: how the copies of each minibatch become weights.

    A method consumes every copy of every minibatch once, and says what that cost. After `finish` the model that it was given holds
    the weights the method stands for.

    Attributes:
        cost: so far; a method around another shares that one's.
        forward_passes: of a network for one prediction, the inference budget (I-budget).
        spread: whether this process computes a part of the work, and others the rest.
    """

    forward_passes = 1
    spread = False

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.cost = Cost()

    @abstractmethod
    def train_minibatch(self, minibatch: Minibatch) -> Tensor:
        """Trains on every copy of the minibatch.

        Returns:
            The detached training loss on each copy, float32 ``(branches,)``.
        """

    def at_once(self, position: int) -> int:
        """How many minibatches from this one on `train_together` may be given; one by default.

        More where branches may take several before the next branch has its turn: nothing looks at the weights in between, and what
        forward passes do is known not to depend on the order of steps (see also `shared_buffers`).
        """
        return 1

    def shared_buffers(self) -> Sequence[Tensor]:
        """The model's buffers that branches have in common: where forward passes write them, the order of steps matters."""
        return ()

    def train_together(self, minibatches: Sequence[Minibatch], factors: Sequence[float]) -> Iterator[Tensor]:
        """Trains on minibatches that follow one another, each with its learning rate.

        The weights are those of one after the other; a method with branches gives each of them all minibatches before the next
        branch has its turn.

        Args:
            minibatches: at most as many as `at_once` allows at the first one's position.
            factors: for `scale_learning_rate`, one for each.

        Yields:
            What `train_minibatch` gives, of each minibatch when all its copies are done with.
        """
        for minibatch, factor in zip(minibatches, factors, strict=True):
            self.scale_learning_rate(factor)
            yield self.train_minibatch(minibatch)

    @abstractmethod
    def scale_learning_rate(self, factor: float) -> None:
        """Sets every learning rate to ``factor`` times its peak."""

    def learning_rate_factor(self, position: int) -> float:
        """The factor for `scale_learning_rate` before a minibatch, counted from 0: by default the schedule's."""
        return self.setup.schedule(position)

    def members(self) -> Sequence[nn.Module]:
        """The networks whose logits the prediction averages; none for a method that predicts with its model."""
        return ()

    @abstractmethod
    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the model holds the weights that training would give if it ended here."""

    def restart(self) -> None:  # noqa: B027  # a trajectory keeps no weights of its own
        """Goes on from the weights in the model, which something else has replaced."""

    @contextmanager
    def evaluation(self) -> Iterator[Predict]:
        """Gives what predicts, in evaluation mode, with the weights of `averaged`."""
        with self.averaged(), self.plain() as predict:
            yield predict

    @contextmanager
    def plain(self) -> Iterator[Predict]:
        """Gives what predicts, in evaluation mode, with the weights that are in the model."""
        model = self.setup.model
        model.eval()
        try:
            yield model
        finally:
            model.train()

    @abstractmethod
    def finish(self) -> None:
        """Ends the training: leaves the method's final weights in the model."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs, besides the model's own state, to go on bit for bit."""

    def part_state_dict(self) -> dict[str, Any]:
        """This process's part of what one process that computes everything would have for its state."""
        return self.state_dict()

    def whole_state_dict(self, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The parts of all processes, in their order, put together: the state of one process that computes everything.

        Where each computes everything, that is the first one's.
        """
        return dict(parts[0])

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from where the state, a whole one, was taken.

        Raises:
            ValueError: for a state of another method or another network.
        """


class Following(Method):
    """Another method's training, and something that looks at its weights after some of the minibatches.

    Args:
        setup: what to train.
        inner: trains.
    """

    def __init__(self, setup: Setup, inner: Method) -> None:
        super().__init__(setup)
        self.inner, self.cost, self.spread = inner, inner.cost, inner.spread

    @abstractmethod
    def follow(self, position: int) -> None:
        """Looks at the weights after a minibatch, if it is time to."""

    @abstractmethod
    def until(self, position: int) -> int:
        """The number of minibatches, from this one on, up to the one after which it is time."""

    def train_minibatch(self, minibatch: Minibatch) -> Tensor:
        losses = self.inner.train_minibatch(minibatch)
        self.follow(minibatch.position)
        return losses

    def at_once(self, position: int) -> int:
        return min(self.inner.at_once(position), self.until(position))

    def shared_buffers(self) -> Sequence[Tensor]:
        return self.inner.shared_buffers()

    def train_together(self, minibatches: Sequence[Minibatch], factors: Sequence[float]) -> Iterator[Tensor]:
        rows = self.inner.train_together(minibatches, factors)
        return last_after(rows, len(minibatches), lambda: self.follow(minibatches[-1].position))

    def scale_learning_rate(self, factor: float) -> None:
        self.inner.scale_learning_rate(factor)


def last_after(rows: Iterator[Tensor], count: int, act: Callable[[], None]) -> Iterator[Tensor]:
    """So many rows as they come, the last one after an action."""
    yield from islice(rows, count - 1)
    last = next(rows)
    act()
    yield last
