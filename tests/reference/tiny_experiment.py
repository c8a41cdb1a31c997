"""A very small experiment on real digits, and a display that keeps what it is told: fixtures for every folder of tests."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from lookaround.experiment import Budget, Display, Machine, Plan
from lookaround.experiment.running import Prepared, prepare
from lookaround.experiment.training import Training
from lookaround.methods import Spec
from lookaround.tasks.vision import VisionConfig
from lookaround.tasks.vision.data import ImageData, load_data


class Kept(Display):
    """Keeps what an experiment reports."""

    def __init__(self) -> None:
        self.begun = 0
        self.runs: list[tuple[str, int, int]] = []
        self.losses: list[float | None] = []
        self.records: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.closed = False

    def begin(self, runs: int) -> None:
        self.begun = runs

    def run(self, label: str, done: int, total: int) -> None:
        self.runs.append((label, done, total))

    def minibatch(self, loss: float | None) -> None:
        self.losses.append(loss)

    def epoch(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def close(self) -> None:
        self.closed = True


def a_plan(*methods: str, seeds: tuple[int, ...] = (0,), **changes: Any) -> Plan:
    """Two epochs of four minibatches of 15 digits (of 16 for methods that say so), three shared copies each.

    ``changes`` are options by name, wherever in the plan they stand; every method has ``batch=15`` unless it says otherwise.
    """
    config = VisionConfig(train_images=64, test_images=30, width=4, copies="shared")
    parts = [config, Budget(epochs=2), Machine(device="cpu", threads=1)]
    known = [{field.name for field in fields(part)} for part in parts]
    assert set(changes) <= set().union(*known)
    parts = [
        replace(part, **{name: value for name, value in changes.items() if name in names})
        for part, names in zip(parts, known, strict=True)
    ]
    specs = tuple(map(Spec.parse, methods or ("sgd",)))
    return Plan("vision", parts[0], specs, seeds, parts[1], parts[2])  # type: ignore[arg-type]


def in_fifteens(prepared: Prepared) -> Prepared:
    """The same with minibatches of 15 for all methods that do not choose; the epochs hold whole numbers of them."""
    task = prepared.task
    task.defaults = replace(task.defaults, batch=15)
    usual = task.batches(0, 15, task.branches)
    epoch = usual.per_epoch * usual.units * task.branches
    budget = prepared.plan.budget
    return replace(prepared, budget=budget.budget or budget.epochs * epoch, epochs=float(budget.epochs))


@pytest.fixture
def display() -> Kept:
    return Kept()


@pytest.fixture(scope="session")
def digits() -> ImageData:
    return load_data("digits").subset(64, 30, 0)


@pytest.fixture
def start(tmp_path: Path, display: Kept) -> Any:
    """Makes a `Training` of the tiny experiment: method, then options to change, seed and folder.

    The methods beside which it is compared, if any, decide what is held out.
    """

    def make(
        method: str, *, seed: int = 0, folder: str = "run", beside: tuple[str, ...] = (), **changes: Any
    ) -> Training:
        path = tmp_path / folder
        path.mkdir(exist_ok=True)
        plan = a_plan(method, *beside, **changes)
        return Training(in_fifteens(prepare(plan)), plan.methods[0], seed, path, display)

    return make
