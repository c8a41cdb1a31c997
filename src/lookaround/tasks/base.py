"""What an experiment asks of a task: data, network, loss, metrics, and how the copies of a minibatch differ.

A task knows nothing of methods, and a method nothing of what it trains: methods ask for copies of minibatches, and get the loss
of a model on them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

Copies = Literal["independent", "shared"]
"""Whose the d copies are: each branch's copy comes from its own shuffled order, or all are copies of one minibatch."""
Split = Literal["train", "held-out", "test"]
Predict = Callable[[Any], Any]
"""What a model's forward pass gives: predictions (logits) from a batch's inputs."""


@dataclass(frozen=True)
class Metric:
    """A number that says how good weights are.

    Attributes:
        name: its key in records and results, such as ``"top1"``.
        title: for tables and figures, such as ``"top-1 %"``.
        lower: whether less is better.
        digits: after the decimal point, in tables.
        loss: whether it is the loss that is trained, by which methods that watch a loss choose.
    """

    name: str
    title: str
    lower: bool
    digits: int = 2
    loss: bool = False


class Batch(NamedTuple):
    """One branch's copy of a minibatch.

    Attributes:
        inputs: what the model is called on.
        targets: what its output is held against.
        size: how much of the budget one gradient on it costs, in the task's unit (samples or tokens).
    """

    inputs: Any
    targets: Any
    size: int


class Batches(ABC):
    """The minibatches of one run: each copy a function of seed, position and branch alone.

    Nothing here has a history. Whatever a method does with the copies, in how many processes, and wherever a run was killed and
    resumed, the same numbers come out: that is what makes the comparison's budget equal and its resumption exact.

    Attributes:
        branches: copies of a minibatch, all of which a method consumes.
        per_epoch: minibatches in a pass over the training data.
        units: of the budget in one copy; the mean (rounded) where copies differ in size.
        read_ahead: whether copies are read ahead in the order of minibatches, so that all of one are to be asked for before the next.
    """

    branches: int
    per_epoch: int
    units: int
    read_ahead: bool = False

    @abstractmethod
    def copy(self, position: int, branch: int) -> Batch:
        """Branch ``branch``'s copy of minibatch number ``position`` of the run, counted from 0 over all epochs."""


class Minibatch(NamedTuple):
    """A place in the run, from which any branch's copy can be drawn."""

    batches: Batches
    position: int

    @property
    def branches(self) -> int:
        """The number of copies."""
        return self.batches.branches

    def copy(self, branch: int) -> Batch:
        """Copy number ``branch``, from 0."""
        return self.batches.copy(self.position, branch)


@dataclass(frozen=True)
class Defaults:
    """Settings that suit a task, for the methods that are not given their own.

    Attributes:
        inner: name of the inner optimizer.
        batch: size of a minibatch, in what the task counts batches in.
        optimizers: by inner optimizer, the arguments that suit the task, such as ``{"sgd": {"lr": 0.1, "momentum": 0.9}}``.
        schedule: settings of the learning rate's schedule, such as ``{"warmup": 1.0}``.
    """

    inner: str
    batch: int
    optimizers: Mapping[str, Mapping[str, Any]]
    schedule: Mapping[str, Any] = field(default_factory=dict)


class Task(ABC):
    """What is trained, its data loaded and on its device.

    Attributes:
        name: of the data, for notes and titles.
        unit: of the budget: ``"samples"`` or ``"tokens"``.
        metrics: what `evaluate` gives, the one that tables lead with first; one of them is the loss.
        branches: copies of a minibatch, d.
        device: of data and networks.
        defaults: settings that suit it.
        notes: what a reader of the numbers has to know of the data, a line each.
        clip: the gradient's norm is clipped to this before each step, for every method alike; None: it is not.
    """

    name: str
    unit: str = "samples"
    metrics: Sequence[Metric]
    branches: int
    device: torch.device
    defaults: Defaults
    notes: Sequence[str] = ()
    clip: float | None = None

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """All that decides what its numbers mean, as JSON: data and its digest, network, loss, copies; not where files lie.

        Runs of equal identities are comparable, whatever experiment they are from.
        """

    @abstractmethod
    def network(self) -> nn.Module:
        """A network on the device, its initial weights drawn from torch's global generator."""

    def parameters(self, model: nn.Module) -> list[dict[str, Any]]:
        """The parameter groups that are trained.

        A group may carry ``"lr_scale"``, by which a method's learning rate is multiplied for it.
        """
        return [{"params": list(model.parameters())}]

    @abstractmethod
    def batches(self, seed: int, batch: int, branches: int) -> Batches:
        """The minibatches of one run.

        Raises:
            ValueError: for a batch or a number of branches that the data cannot serve.
        """

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean training loss of the model, as it is now, on one copy: a scalar to call ``backward`` on."""

    @abstractmethod
    def evaluate(self, predict: Predict, split: Split) -> dict[str, float]:
        """The metrics of ``predict`` (a model in evaluation mode, or an ensemble's mean) on a split, not augmented.

        Raises:
            ValueError: for held-out data where none was set aside.
        """

    @abstractmethod
    def holding_out(self, fraction: float) -> Task:
        """The task with so much of its training data set aside: no method trains on it, ``"held-out"`` evaluates on it.

        Raises:
            ValueError: for a fraction outside (0, 1) or one that leaves nothing.
        """

    @abstractmethod
    def save(self, path: Path, model: nn.Module, notes: Mapping[str, str]) -> None:
        """Writes the model as a safetensors file that says how to build it again, whole or not at all."""


class TaskConfig(Protocol):
    """A task's settings: a frozen dataclass of plain values, whose fields are options of ``lookaround train``."""

    def suits(self) -> Mapping[str, Any]:
        """What suits it among the experiment's own options, such as ``{"epochs": 20}``."""
