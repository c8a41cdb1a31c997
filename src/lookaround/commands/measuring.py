"""What planes and lines share: options, measuring a grid that can be gone on with, processes that share it."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from lookaround.commands.images import DataOptions, batches, experiment_of, load_images, part
from lookaround.commands.parsing import usage_errors
from lookaround.commands.runs import Run, network_of
from lookaround.experiment import InterruptedRunError, UsageError
from lookaround.experiment.comparison import cpu_threads
from lookaround.landscape import Geometry, Grid, evaluate_grid
from lookaround.tasks.vision.data import ImageData

Report = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class MeasureOptions(DataOptions):
    """How weights are measured, and where the figures go."""

    out: Path = Path("landscape")
    """Folder for the figures."""
    split: Literal["test", "train"] = "test"
    """Images to measure on: the test images, or those trained on, not augmented."""
    images: int | None = None
    """Measure on this many of them, equally many of each class. None: all."""
    norm_stats: Literal["reestimate", "fixed"] = "reestimate"
    """Norm layers' running statistics: re-estimated on training images at every point, or the first RUN's at all."""
    norm_images: int | None = None
    """Re-estimate on this many training images. None: all, up to 2,000."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"{self.out} is a file; choose a folder for --out")


@dataclass(frozen=True, kw_only=True)
class GridOptions(MeasureOptions):
    """A grid of points, each kept in the folder as soon as it is measured."""

    points: int = 21
    """Points along each axis; on a line, from one solution to the other."""


def probe_settings(options: MeasureOptions, data: ImageData) -> dict[str, Any]:
    """The keyword arguments of `Probe` that say what is measured, on the data's device.

    Raises:
        UsageError: for numbers of images that there are not.
    """
    images, labels = part(data, options.split, options.images)
    available = len(data.train_labels)
    wanted = min(available, 2000) if options.norm_images is None else options.norm_images
    norm_images, norm_labels = part(data, "train", wanted)
    stream = [x for x, _ in batches(data, norm_images, norm_labels, options.batch_size)]
    return {
        "batches": batches(data, images, labels, options.batch_size),
        "norm_stats": options.norm_stats,
        "norm_batches": stream if options.norm_stats == "reestimate" else None,
    }


def measure(
    options: GridOptions, runs: Sequence[Run], geometry: Geometry, xs: Sequence[float], ys: Sequence[float], name: str
) -> Grid:
    """The grid, gone on with where an interrupted call of the same command left it.

    Raises:
        UsageError: for images or settings that cannot be used, or another grid's points in the folder.
        InterruptedRunError: after Ctrl-C; the finished points are kept.
    """
    model, architecture = network_of(runs)
    plan = experiment_of(runs, options)
    options.out.mkdir(parents=True, exist_ok=True)
    store = options.out / f"{name}.points"
    done = [0, math.prod((len(xs), len(ys) or 1))]
    with cpu_threads(options.threads or plan.machine.threads), usage_errors(), _bar(name) as show:
        data = load_images(plan, architecture).data
        network: nn.Module = model.to(data.train_images.device)

        def report(finished: int, total: int) -> None:
            done[0] = finished
            show(finished, total)

        try:
            return evaluate_grid(
                network, geometry, xs, ys, store=store, progress=report, **probe_settings(options, data)
            )
        except KeyboardInterrupt:
            message = f"{done[0]} of {done[1]} points are kept in {store}"
            raise InterruptedRunError(message, signal.SIGINT) from None


@contextmanager
def _bar(what: str) -> Iterator[Report]:
    """A progress bar on standard error, where that is a terminal of the first process."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not (console.is_terminal and first_process())) as bar:
        task = bar.add_task(what, total=None)
        yield lambda finished, total: bar.update(task, completed=finished, total=total)


def finish(options: GridOptions, name: str) -> None:
    """Removes the points of a grid whose files are written: they have all that it had."""
    (options.out / f"{name}.points").unlink(missing_ok=True)


def first_process() -> bool:
    """Whether this process prints and writes: the first under torchrun, the only one elsewhere."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def shared_processes() -> Iterator[None]:
    """Inside, the processes that torchrun started share the grid; alone, nothing happens."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or torch.distributed.is_initialized():
        yield
        return
    torch.distributed.init_process_group("gloo")
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def check_count(what: str, runs: Sequence[Path], allowed: str, fits: bool) -> None:
    """Raises `UsageError` unless the number of runs ``fits``."""
    if not fits:
        raise UsageError(f"{what} takes {allowed}, got {len(runs)}")
