"""A very small experiment on real images, and a display that keeps what it is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lookaround.experiment import Display, TrainConfig
from lookaround.experiment.training import Training
from lookaround.tasks.vision.data import ImageData, load_data


class Kept(Display):
    """Keeps what an experiment reports."""

    def __init__(self) -> None:
        self.minibatches = 0
        self.runs: list[tuple[str, int]] = []
        self.losses: list[float | None] = []
        self.records: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.skipped: list[int] = []
        self.closed = False

    def begin(self, minibatches: int) -> None:
        self.minibatches = minibatches

    def run(self, label: str, done: int) -> None:
        self.runs.append((label, done))

    def skip(self, minibatches: int) -> None:
        self.skipped.append(minibatches)

    def minibatch(self, loss: float | None) -> None:
        self.losses.append(loss)

    def epoch(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def display() -> Kept:
    return Kept()


@pytest.fixture(scope="session")
def tiny() -> TrainConfig:
    """Two epochs of four minibatches of 15 digits."""
    return TrainConfig(train_images=64, test_images=30, batch_size=15, epochs=2, width=4, k=3, device="cpu")


@pytest.fixture(scope="session")
def digits(tiny: TrainConfig) -> ImageData:
    return load_data("digits").subset(tiny.train_images, tiny.test_images, 0)


@pytest.fixture
def start(tiny: TrainConfig, digits: ImageData, tmp_path: Path, display: Kept) -> Any:
    """Makes a `Training` of the tiny experiment: method, then fields to change, seed and folder."""

    def make(method: str, *, seed: int = 0, folder: str = "run", **changes: Any) -> Training:
        path = tmp_path / folder
        path.mkdir(exist_ok=True)
        return Training(replace(tiny, **changes), digits, method, seed, path, display)

    return make
