"""A run gives a method the minibatches of a round at once, and ends as one that trains on each alone: weights, records, what it cost."""

from __future__ import annotations

import math
import re
import signal
from dataclasses import replace

import pytest
import torch
from torch import nn

from experiment.test_training import TRAINED, never, same, without_seconds
from lookaround.experiment import InterruptedRunError
from lookaround.experiment import training as module

# What the short run of the others does not come to: rounds that end between two looks, and branches that are not independent.
MORE = [
    "lookaround:k=3",
    "lookaround:k=2,norm_stats=copy",
    "lookaround:k=3,overlap=1",
    "diloco+swa:k=3,swa_start=0.5,swa_cycle=2",
]
MORE += ["lookaround:start=0.4,k=3", "lookaround+tail:every=3", "logit-ensemble+swa:swa_cycle=2,swa_start=0.4"]
# In runs this short the held-out loss keeps falling, and swad says that it returns the last model.
pytestmark = pytest.mark.filterwarnings("ignore:the SWAD window never opened")


def blocks_of(training: module.Training) -> list[int]:
    """How many minibatches are trained on together, from now on."""
    found: list[int] = []
    train = training.method.train_together

    def spied(minibatches, factors):
        found.append(len(minibatches))
        return train(minibatches, factors)

    training.method.train_together = spied  # type: ignore[method-assign]
    return found


@pytest.mark.parametrize("method", [*TRAINED, *MORE])
@pytest.mark.parametrize("evaluations", [1, 3])
def test_together_or_alone_a_run_ends_in_the_same_bits(start, tmp_path, monkeypatch, method, evaluations):
    together = start(method, folder="together", epochs=3, evaluations=evaluations)
    result = together.train(never)
    monkeypatch.setattr(module, "_AT_ONCE", 1)
    alone = start(method, folder="alone", epochs=3, evaluations=evaluations)
    sizes = blocks_of(alone)
    expected = alone.train(never)
    assert set(sizes) == {1}
    assert same(together.model, alone.model)
    assert without_seconds(tmp_path / "together") == without_seconds(tmp_path / "alone")
    assert (result.spent, result.gradient_evaluations) == (expected.spent, expected.gradient_evaluations)


@pytest.mark.parametrize(
    ("method", "options", "sizes"),
    [
        ("lookaround:k=3", {"evaluations": 1}, [1, 2, 3, 3, 3]),
        ("lookaround:k=3", {"evaluations": 2}, [1, 2, 3, 3, 3]),
        ("lookaround:k=5", {"evaluations": 2}, [1, 4, 1, 4, 2]),
        ("lookaround:k=100", {"evaluations": 1}, [1, 5, 5, 1]),
        ("lookaround:k=100", {"evaluations": 1, "checkpoint_every": 4}, [1, 3, 4, 4]),
        ("lookaround+tail:k=5,every=4", {"evaluations": 1}, [1, 3, 1, 3, 2, 2]),
        ("lookaround+swa:k=5,swa_start=0.5", {"evaluations": 1}, [1, 4, 1, *6 * [1]]),
        ("uniform-soup", {"evaluations": 1}, [1, 5, 5, 1]),
        ("lookaround:k=3,norm_stats=copy", {"evaluations": 1}, 12 * [1]),
        ("lookahead:k=6", {"evaluations": 1}, 12 * [1]),
        ("sgd", {"evaluations": 1}, 12 * [1]),
    ],
)
def test_what_is_trained_together_ends_where_something_looks_at_the_run(start, method, options, sizes):
    training = start(method, epochs=3, **options)
    found = blocks_of(training)
    training.train(never)
    assert found == sizes


def test_branches_change_places_once_a_round(start, monkeypatch):
    training = start("lookaround:k=4", epochs=3, evaluations=1)
    branches = training.method.optimizer._run.branches
    exchanges, load = [], branches.load

    def spied(branch, **how):
        exchanges.append(branch)
        load(branch, **how)

    monkeypatch.setattr(branches, "load", spied)
    training.train(never)
    assert exchanges == 4 * [
        1,
        2,
        0,
    ]  # the first minibatch alone, what is left of its round, and two rounds; 12 one by one


def dropping(self):
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))


def test_a_network_that_draws_numbers_draws_them_in_the_order_of_minibatches(start, monkeypatch):
    monkeypatch.setattr("lookaround.tasks.vision.networks.Architecture.build", dropping)
    whole = start("lookaround:k=3", folder="whole", epochs=3)
    sizes = blocks_of(whole)
    whole.train(never)
    assert sizes == 12 * [1]
    plain = start("lookaround:k=3", folder="plain", epochs=3)
    optimizer, setup = plain.method.optimizer, plain.method.setup
    for position in range(12):
        optimizer.param_groups[0]["lr"] = 0.1 * setup.schedule(position)
        for branch in optimizer.around():
            optimizer.zero_grad()
            setup.loss(plain.model, setup.batches.copy(position, branch)).backward()
            optimizer.step()
    optimizer.average()
    assert same(plain.model, whole.model)


@pytest.mark.parametrize("draws", [False, True])
def test_a_run_that_goes_on_knows_whether_its_network_draws_numbers(start, monkeypatch, draws):
    if draws:
        monkeypatch.setattr("lookaround.tasks.vision.networks.Architecture.build", dropping)
    stopped = start("lookaround:k=3", epochs=3)
    with pytest.raises(InterruptedRunError):
        stopped.train(lambda: signal.SIGINT if stopped.step >= 3 else None)
    rest = start("lookaround:k=3", epochs=3)
    assert rest.step == 3
    sizes = blocks_of(rest)
    rest.train(never)
    assert sizes == (9 * [1] if draws else [1, 2, 2, 1, 3])


def test_numbers_drawn_by_the_copies_are_noticed_too(start, monkeypatch):
    training = start("lookaround:k=3", epochs=3, evaluations=1)
    draw = training.batches.copy

    def drawing(position, branch):
        torch.rand(1)
        return draw(position, branch)

    monkeypatch.setattr(training.batches, "copy", drawing)
    sizes = blocks_of(training)
    training.train(never)
    assert sizes == 12 * [1]


class Counting(nn.Module):
    """Scales by how often it was called in training, which it does not save."""

    def __init__(self, persistent: bool) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()), persistent=persistent)

    def forward(self, x):
        if self.training:
            self.calls.add_(1)
        return x / (1 + 0.01 * self.calls)


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("method", ["lookaround:k=3", "uniform-soup", "lookaround:k=3,norm_stats=copy"])
def test_a_buffer_that_branches_share_and_the_network_writes_keeps_the_order(start, monkeypatch, method, persistent):
    def counting(self):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), Counting(persistent))

    monkeypatch.setattr("lookaround.tasks.vision.networks.Architecture.build", counting)
    together = start(method, folder="together", epochs=3, evaluations=1)
    sizes = blocks_of(together)
    together.train(never)
    shared = not persistent or "copy" in method
    assert (set(sizes) == {1}) == shared
    monkeypatch.setattr(module, "_AT_ONCE", 1)
    alone = start(method, folder="alone", epochs=3, evaluations=1)
    alone.train(never)
    assert same(together.model, alone.model)


class Unversioned(nn.Module):
    """Batch statistics that say nothing of being written: no version of theirs is moved on."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(10))
        self.register_buffer("var", torch.ones(10))

    def forward(self, x):
        return nn.functional.batch_norm(x, self.mean, self.var, training=self.training)


def test_a_write_that_moves_no_version_keeps_the_order_too(start, monkeypatch):
    def unversioned(self):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), Unversioned())

    monkeypatch.setattr("lookaround.tasks.vision.networks.Architecture.build", unversioned)
    training = start("lookaround:k=3,norm_stats=copy", epochs=3, evaluations=1)
    sizes = blocks_of(training)
    training.train(never)
    assert sizes == 12 * [1]


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(10), persistent=False)

    def forward(self, x):
        return x * self.mask


def test_a_buffer_that_is_put_back_as_it_was_is_none_that_is_written(start, monkeypatch):
    def masked(self):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10), Masked())

    monkeypatch.setattr("lookaround.tasks.vision.networks.Architecture.build", masked)
    training = start("lookaround+tail:k=6,every=3,norm_stats=reestimate", epochs=3, evaluations=1)
    sizes = blocks_of(training)
    training.train(never)
    assert sizes == [1, 2, 3, 3, 3]


def test_a_network_that_begins_to_draw_numbers_late_is_warned_of(start, monkeypatch):
    training = start("lookaround:k=3", epochs=3, evaluations=1)
    loss, calls = training.method.setup.loss, []

    def late(model, batch):
        calls.append(0)
        return loss(model, batch) + (0 * torch.rand(()) if len(calls) > 12 else 0)

    monkeypatch.setattr(training.method, "setup", replace(training.method.setup, loss=late))
    sizes = blocks_of(training)
    with pytest.warns(RuntimeWarning, match="depends on --checkpoint-every"):
        training.train(never)
    assert sizes == [1, 2, 3, *6 * [1]]


def test_copies_that_are_read_ahead_come_in_the_order_of_minibatches(start):
    training = start("lookaround:k=3", epochs=3, evaluations=1)
    training.batches.read_ahead = True
    sizes = blocks_of(training)
    training.train(never)
    assert sizes == 12 * [1]


@pytest.mark.parametrize("at", [3, 4, 5, 9])
@pytest.mark.parametrize("method", ["lookaround:k=5", "lookaround+tail:k=3,every=2", "logit-ensemble"])
def test_what_diverges_is_named_as_if_trained_alone(start, monkeypatch, method, at):
    said = []
    for most in (5, 1):
        monkeypatch.setattr(module, "_AT_ONCE", most)
        training = start(method, folder=f"most-{most}", epochs=3, evaluations=1)
        loss, copy = training.method.setup.loss, training.batches.copy
        place = []

        def noted(position, branch, copy=copy, place=place):
            place[:] = [position]
            return copy(position, branch)

        def diverging(model, batch, loss=loss, place=place):
            return loss(model, batch) * (math.nan if place[0] >= at else 1)

        monkeypatch.setattr(training.batches, "copy", noted)
        monkeypatch.setattr(training.method, "setup", replace(training.method.setup, loss=diverging))
        inner = getattr(training.method, "inner", training.method)
        monkeypatch.setattr(inner, "setup", replace(inner.setup, loss=diverging))
        with pytest.raises(module.DivergedError) as caught:
            training.train(never)
        said.append((str(caught.value), training.step))
    assert said[0] == said[1]
    message, step = said[0]
    assert step == at
    # The average that ends a round with this minibatch comes before a look at its loss.
    assert re.search(rf" diverged: (the training loss|every branch) is not finite in epoch {at // 4 + 1};", message)
