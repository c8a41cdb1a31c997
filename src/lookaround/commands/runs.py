"""Finished runs, named on the command line by their folder or by a safetensors file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from lookaround.averaging.files import read_header
from lookaround.averaging.soups.recipe import METADATA_KEY
from lookaround.commands.parsing import usage_errors
from lookaround.errors import UsageError
from lookaround.experiment import Plan
from lookaround.experiment.folder import EXPERIMENT, saved_plan
from lookaround.experiment.results import NETWORK, RESULT
from lookaround.landscape import flatten, flatten_state
from lookaround.methods import Resolved, Spec
from lookaround.tasks.base import Task
from lookaround.tasks.vision import VisionConfig, load_network, preset
from lookaround.tasks.vision.networks import ARCHITECTURE, NOTE, Architecture
from lookaround.tasks.vision.presets import PRESETS


@dataclass(frozen=True)
class Run:
    """A weight vector, with what is known of where it comes from.

    Attributes:
        name: for figures and tables.
        file: that holds the weights.
        method: that trained them, or None.
        seed: of the run, or None.
        plan: of the experiment in whose folder the file lies, or None.
        model: the network on the CPU in evaluation mode, or None where the file holds tensors alone.
        architecture: of the network, or None.
        data: the name of the data it was trained on, as its file says; None where it does not.
    """

    name: str
    file: Path
    method: str | None
    seed: int | None
    plan: Plan | None
    model: nn.Module | None
    architecture: Architecture | None
    data: str | None = None

    def weights(self, like: nn.Module) -> Tensor:
        """The weights as one vector, in the order of ``like``'s parameters.

        Raises:
            UsageError: for weights of another network.
        """
        if self.model is not None:
            return flatten(self.model)
        from safetensors.torch import load_file

        try:
            return flatten_state(like, load_file(self.file))
        except ValueError as error:
            raise UsageError(f"{self.file}: {error}") from error


def load_run(path: Path) -> Run:
    """The run in a ``METHOD/seed-SEED`` folder, in an experiment of a single run, or in a safetensors file.

    Raises:
        UsageError: for a path that is none of these, or a damaged file.
    """
    file = network_file(path)
    try:
        metadata = read_header(file)[1]
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} is no safetensors file: {error}") from error
    model, architecture = load_network(file) if _of_images(metadata) else (None, None)
    of_a_run = {} if METADATA_KEY in metadata else metadata  # a soup is no run, whatever its ingredients agree on
    method, seed = (of_a_run.get(NOTE.format(note)) for note in ("method", "seed"))
    name = f"{method}, seed {seed}" if method else file.stem
    folder = file.parent.parent.parent
    plan = saved_plan(folder) if (folder / EXPERIMENT).is_file() else None
    data = metadata.get(NOTE.format("data"))
    return Run(name, file, method, None if seed is None else int(seed), plan, model, architecture, data)


def _of_images(metadata: Mapping[str, str]) -> bool:
    """Whether a file describes a network of the vision task; those of text say which task is theirs, and are tensors here."""
    try:
        described = json.loads(metadata.get(ARCHITECTURE, "null"))
    except ValueError:
        return True  # a damaged description, which `load_network` names
    return described is not None and not (isinstance(described, dict) and "task" in described)


def network_file(path: Path) -> Path:
    """The safetensors file that is meant by a file, a run's folder, or the folder of an experiment of a single run.

    Raises:
        UsageError: for a path that is none of these.
    """
    if path.is_file():
        return path
    if not path.exists():
        raise UsageError(f"there is no {path}; give a run's folder (OUT/METHOD/seed-SEED) or a safetensors file")
    if (path / NETWORK).is_file():
        return path / NETWORK
    if diverged(path):
        raise UsageError(f"{path} holds no network: {diverged(path)}")
    inside = _finished(path)
    if len(inside) == 1:
        return inside[0] / NETWORK
    if inside:
        raise UsageError(f"{path} holds {len(inside)} runs; give one of them, such as {inside[0]}")
    raise UsageError(f"{path} holds no finished run: there is no {NETWORK} in it")


def each_run(paths: Sequence[Path]) -> list[Path]:
    """The paths, an experiment's folder replaced by its finished runs."""
    return [run for path in paths for run in (_finished(path) or [path])]


def _finished(path: Path) -> list[Path]:
    return [] if (path / NETWORK).is_file() else sorted(file.parent for file in path.glob(f"*/seed-*/{NETWORK}"))


def diverged(folder: Path) -> str | None:
    """Why the run in a folder has no network, if it is one that diverged."""
    try:
        said: str | None = json.loads((folder / RESULT).read_text(encoding="utf-8")).get("diverged")
    except (OSError, ValueError):
        return None
    return said


def load_runs(paths: Sequence[Path]) -> list[Run]:
    """Several runs of one network, with names that tell them apart.

    Raises:
        UsageError: as `load_run`; for runs of different networks.
    """
    runs = [load_run(path) for path in paths]
    known = [run for run in runs if run.architecture is not None]
    for run in known[1:]:
        difference = _difference(known[0], run)
        if difference:
            raise UsageError(f"{run.file} and {known[0].file} are different networks: {difference}")
    return _told_apart(runs)


def _difference(first: Run, second: Run) -> str:
    assert first.architecture is not None
    assert second.architecture is not None
    names = ("name", "width", "channels", "image_size", "classes")
    pairs = [(name, getattr(second.architecture, name), getattr(first.architecture, name)) for name in names]
    return ", ".join(f"{name} {found} against {expected}" for name, found, expected in pairs if found != expected)


def _told_apart(runs: Iterable[Run]) -> list[Run]:
    listed = list(runs)
    names = [run.name for run in listed]
    return [
        replace(run, name=str(run.file.parent if run.file.name == NETWORK else run.file))
        if names.count(run.name) > 1
        else run
        for run in listed
    ]


def network_of(runs: Sequence[Run]) -> tuple[nn.Module, Architecture]:
    """The network of the first run that says what it is.

    Raises:
        UsageError: none does.
    """
    for run in runs:
        if run.model is not None and run.architecture is not None:
            return run.model, run.architecture
    files = ", ".join(str(run.file) for run in runs)
    raise UsageError(
        f"{files}: tensors without an image network to put them in; add a run of lookaround train on images"
    )


def plan_of(runs: Sequence[Run], data: str | None) -> Plan:
    """The plan of the first run that lies in an experiment's folder, or else one with the preset of ``data``.

    Without ``data`` that is the data set that the files name, as soups do of what all their ingredients were trained on.

    Raises:
        UsageError: neither is there, or the experiment trained something else than images.
    """
    for run in runs:
        if run.plan is not None and data in (None, vision(run.plan).data):
            return run.plan
    data = data or next((run.data for run in runs if run.data in PRESETS), None)
    if data is None:
        files = ", ".join(str(run.file) for run in runs)
        raise UsageError(
            f"{files}: neither the file nor an {EXPERIMENT} says which images to use; pass --data folder --root FOLDER, "
            f"or --data {', '.join(name for name in PRESETS if name != 'folder')}"
        )
    with usage_errors():
        return Plan("vision", preset(data), (Spec("sgd"),))


def vision(plan: Plan) -> VisionConfig:
    """The plan's images and network.

    Raises:
        UsageError: for an experiment that trained something else.
    """
    if not isinstance(plan.config, VisionConfig):
        raise UsageError(f"this works on images, and the experiment trained the {plan.task} task; give a run on images")
    return plan.config


def settings_of_run(run: Run, task: Task, otherwise: str = "sgd") -> Resolved:
    """The settings of the method that trained a run, or those that suit the task of the one named otherwise.

    Raises:
        UsageError: for a method that this version does not know.
    """
    with usage_errors():
        return Spec.parse(run.method or otherwise).resolve(task.defaults, task.branches)
