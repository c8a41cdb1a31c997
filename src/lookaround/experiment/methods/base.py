"""What the training loop asks of a method, whatever the method averages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lookaround.experiment.batches import Batches, Minibatch
from lookaround.experiment.config import TrainConfig
from lookaround.experiment.evaluation import Predict, Scores
from lookaround.experiment.schedule import learning_rate_factor


@dataclass(frozen=True)
class Setting:
    """What a method is given to work with.

    Attributes:
        model: a freshly initialized network on the training device.
        config: of the experiment.
        loss: the mean training loss of a model, as it is now, on ``(model, images, labels)``.
        run: the minibatches of the whole run, for methods that plan over it; None where there is no such run.
        held_out: scores on held-out training images, for methods that choose by them; None where there are none.
    """

    model: nn.Module
    config: TrainConfig
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor]
    run: Batches | None = None
    held_out: Callable[[Predict], Scores] | None = None

    @property
    def batches(self) -> Batches:
        """The minibatches of the whole run.

        Raises:
            ValueError: where there is none.
        """
        if self.run is None:
            raise ValueError("this method plans over a whole run and works in `lookaround train` only; choose another")
        return self.run

    def validate(self, predict: Predict) -> Scores:
        """Scores on held-out training images.

        Raises:
            ValueError: where there are none.
        """
        if self.held_out is None:
            raise ValueError(
                "this method chooses by held-out images and works in `lookaround train` only; choose another"
            )
        return self.held_out(predict)


class Method(ABC):
    """One row of the comparison: how the augmented copies of each minibatch become weights.

    A method consumes every copy of every minibatch once, and says what that cost. After `finish` the model that it was
    given holds the weights the method stands for.

    Attributes:
        gradient_evaluations: minibatch gradients computed so far, the training budget (T-budget).
        forward_passes: of a network for one prediction, the inference budget (I-budget).
    """

    forward_passes = 1

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.gradient_evaluations = 0

    @abstractmethod
    def train_minibatch(self, minibatch: Minibatch) -> Tensor:
        """Trains on every copy of the minibatch.

        Returns:
            The detached training loss on each copy, float32 ``(branches,)``.
        """

    @abstractmethod
    def scale_learning_rate(self, factor: float) -> None:
        """Sets every learning rate to ``factor`` times its peak."""

    def learning_rate_factor(self, minibatch: int, minibatches_per_epoch: int) -> float:
        """The factor for `scale_learning_rate` before a minibatch, counted from 0: by default the configured schedule's."""
        return learning_rate_factor(self.setting.config, minibatch, minibatches_per_epoch)

    def members(self) -> Sequence[nn.Module]:
        """The networks whose logits the prediction averages; none for a method that predicts with its model."""
        return ()

    @abstractmethod
    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the model holds the weights that training would give if it ended here."""

    @contextmanager
    def evaluation(self) -> Iterator[Predict]:
        """Gives what predicts logits from normalized images, in evaluation mode, with the weights of `averaged`."""
        model = self.setting.model
        with self.averaged():
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

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from where the state was taken.

        Raises:
            ValueError: for a state of another method or another network.
        """
