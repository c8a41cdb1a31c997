"""A whole experiment: every method with every seed, then the table and the curves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from lookaround.errors import DivergedError, UsageError
from lookaround.experiment.batches import Batches, branch_augmentations
from lookaround.experiment.config import TrainConfig
from lookaround.experiment.display import Display, Lines
from lookaround.experiment.folder import ExperimentFolder
from lookaround.experiment.holdout import hold_out
from lookaround.experiment.interrupts import StopRequest, stop_requests
from lookaround.experiment.methods import METHODS
from lookaround.experiment.networks import Architecture
from lookaround.experiment.report import Comparison, report
from lookaround.experiment.training import Training
from lookaround.tasks.vision.data import ImageData, load_data

# Which images make a subset does not change with a run's seed: all runs train and test on the same ones.
SUBSET_SEED = 0


def train(config: TrainConfig, out: Path, display: Display | None = None, *, resume: bool = False) -> Comparison:
    """Trains every method of ``config`` with every seed and compares them.

    ``out`` gets ``config.json``, ``results.json``, ``table.md``, ``curves.png`` and, for each run, a folder
    ``METHOD/seed-SEED`` with ``metrics.jsonl``, TensorBoard events, ``checkpoint.pt``, ``model.safetensors`` and
    ``result.json``; an ensemble's networks are ``member-0.safetensors`` and so on beside it. Each file is written whole
    or not at all, and finished runs are never trained again. A run whose loss is no longer finite ends there; the others go
    on, and the table says which have diverged.

    Args:
        config: what to compute.
        out: the experiment's folder.
        display: follows the experiment; None prints a line an epoch.
        resume: go on with the unfinished experiment in ``out``, bit for bit; one that was not begun starts.

    Raises:
        UsageError: for anything that cannot be used: data, names, settings, folder, checkpoint.
        InterruptedRunError: after SIGINT or SIGTERM, with a checkpoint saved.
        DivergedError: when every run has diverged; the table is written all the same.
        OSError: when a file cannot be written.

    Example:
        >>> import tempfile
        >>> from lookaround.experiment import load_network
        >>> config = TrainConfig(methods=("sgd", "lookaround"), epochs=1, train_images=100, width=4)
        >>> with tempfile.TemporaryDirectory() as out:
        ...     comparison = train(config, Path(out))
        ...     model, architecture = load_network(comparison.networks[1])
        sgd, seed 0 | epoch 1 | ...
        lookaround, seed 0 | epoch 1 | ...
        >>> [result.gradient_evaluations for result in comparison.results]
        [3, 3]
    """
    display = display or Lines(print)
    folder = ExperimentFolder(out, config)
    if folder.exists and not resume and None in folder.ends().values():
        raise UsageError(f"{out} holds this experiment, unfinished: add --resume to go on, or choose another --out")
    data = prepare(config)
    with cpu_threads(config.threads), stop_requests() as stop:
        changed = folder.create(data.train_images.device)
        if changed:
            display.note(f"{out}: {changed}")
        _train_all(folder, data, display, stop)
    return report(folder)


def prepare(config: TrainConfig) -> ImageData:
    """Loads the data and checks every name, before anything is written.

    Returns:
        The images, on the training device.

    Raises:
        UsageError: naming what cannot be used.
    """
    unknown = [method for method in config.methods if method not in METHODS]
    if unknown:
        raise UsageError(f"unknown method {unknown[0]!r}; choose from {', '.join(METHODS)}")
    try:
        branch_augmentations(config)
        data = load_data(config.data, config.root, size=config.image_size)
        data = data.subset(config.train_images, config.test_images, SUBSET_SEED)
        Architecture.for_data(config.model, config.width, data).build()
        hold_out(data, config, config.methods[0])
    except ValueError as error:
        raise UsageError(str(error)) from error
    return to_device(data, config.device)


@contextmanager
def cpu_threads(number: int | None) -> Iterator[None]:
    """Inside, torch uses this many threads for an operation; None leaves it as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if number is None else number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def to_device(data: ImageData, name: str) -> ImageData:
    """The data on the named device; ``auto`` is CUDA where there is one, else the CPU.

    Raises:
        UsageError: for a device that is not there, or neither a CPU nor a CUDA one.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise UsageError(f"unknown device {name!r}; choose auto, cpu, cuda or cuda:N")
    parts = ("train_images", "train_labels", "test_images", "test_labels")
    try:
        return replace(data, **{part: getattr(data, part).to(name) for part in parts})
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error


def _train_all(folder: ExperimentFolder, data: ImageData, display: Display, stop: StopRequest) -> None:
    config = folder.config
    open_runs = [run for run, end in folder.ends().items() if end is None]
    if not open_runs:
        display.note(f"every run in {folder.path} is finished; nothing to train")
    trained_on, _ = hold_out(data, config, config.methods[0])
    minibatches = Batches(trained_on, config, seed=0).per_epoch * config.epochs
    with display:
        display.begin(minibatches * len(open_runs))
        for method, seed in open_runs:
            training = _training(folder, data, method, seed, display)
            display.run(f"{method}, seed {seed}", training.step)
            try:
                training.train(stop)
            except DivergedError as error:
                display.note(training.give_up(str(error)).diverged)
                display.skip(training.total - training.step)


def _training(folder: ExperimentFolder, data: ImageData, method: str, seed: int, display: Display) -> Training:
    path = folder.run(method, seed)
    path.mkdir(parents=True, exist_ok=True)
    try:
        return Training(folder.config, data, method, seed, path, display)
    except ValueError as error:
        raise UsageError(str(error)) from error
