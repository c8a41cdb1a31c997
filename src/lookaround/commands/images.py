"""The images on which runs are measured: those of their experiment, or others named on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from lookaround.commands.parsing import usage_errors
from lookaround.commands.runs import Run, network_of, plan_of, vision
from lookaround.errors import UsageError
from lookaround.experiment import Plan
from lookaround.experiment.running import prepare
from lookaround.tasks.checks import option
from lookaround.tasks.vision import VisionTask
from lookaround.tasks.vision.data import ImageData, Images
from lookaround.tasks.vision.networks import Architecture

# Which images make a part of a split: always the same ones.
_SEED = 0


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Where the images come from and where they are worked on."""

    data: str | None = None
    """Data set: digits, cifar10, cifar100 or folder. None: that of the runs' experiment,
    or the one that their files name."""
    root: Path | None = None
    """Folder that holds the data. None: that of the runs' experiment."""
    device: str = "auto"
    """cpu, cuda, cuda:N …; auto takes CUDA when there is one."""
    threads: int | None = None
    """CPU threads of an operation. None: the experiment's number."""
    batch_size: int = 500
    """Images in a batch of an evaluation; text is cut as in its experiment."""

    def __post_init__(self) -> None:
        for name in ("threads", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{option(name)} must be at least 1, got {value}")


def experiment_of(runs: Sequence[Run], options: DataOptions) -> Plan:
    """The plan that says which images the runs are measured on.

    Raises:
        UsageError: as `plan_of`.
    """
    plan = plan_of(runs, options.data)
    config = vision(plan)
    root = config.root if options.root is None else str(options.root)
    size = network_of(runs)[1].image_size if config.data == "folder" else config.image_size
    machine = replace(plan.machine, device=options.device)
    return replace(plan, config=replace(config, root=root, image_size=size), machine=machine)


def load_images(plan: Plan, architecture: Architecture) -> VisionTask:
    """The experiment's task on the chosen device, its images normalized as the network was trained.

    Raises:
        UsageError: for images that cannot be loaded, or that the network does not take.
    """
    task = prepare(plan).task
    assert isinstance(task, VisionTask)
    data = task.data
    shape = tuple(data.train_images.shape[1:])
    wanted = (architecture.channels, architecture.image_size, architecture.image_size)
    if shape != wanted or data.classes != architecture.classes:
        raise UsageError(
            f"the network takes images {wanted} of {len(architecture.classes)} classes, {data.name} has {shape} "
            f"of {len(data.classes)}; choose the data set that it was trained on"
        )
    return VisionTask(task.config, replace(data, mean=architecture.mean, std=architecture.std), task.held_out)


def part(data: ImageData, split: str, count: int | None) -> tuple[Images, Tensor]:
    """Equally many images of each class out of the training or the test images, and their labels.

    Raises:
        UsageError: for more images than there are, or fewer than one.
    """
    with usage_errors():
        chosen = data.subset(count, None, _SEED) if split == "train" else data.subset(None, count, _SEED)
    return (chosen.train_images, chosen.train_labels) if split == "train" else (chosen.test_images, chosen.test_labels)


def batches(data: ImageData, images: Images, labels: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """Normalized images and labels, cut into batches."""
    return [(data.normalize(x), y) for x, y in zip(images.split(size), labels.split(size), strict=True)]
