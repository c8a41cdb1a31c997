"""``lookaround landscape trajectory``: what happens inside rounds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional as F

from lookaround.commands.images import experiment_of, load_images
from lookaround.commands.measuring import MeasureOptions, check_count, probe_settings
from lookaround.commands.parsing import parse, usage_errors
from lookaround.commands.runs import Run, load_run, network_of
from lookaround.experiment import METHODS, TrainConfig, UsageError
from lookaround.experiment.batches import Batches, stream_seed
from lookaround.experiment.comparison import cpu_threads
from lookaround.experiment.methods import Setting
from lookaround.experiment.methods.trajectory import AveragedTrajectory, Branches
from lookaround.landscape import Recorder, save_figure, trajectory_figure
from lookaround.tasks.vision.data import ImageData

_WITH_ROUNDS = ("lookaround", "lookahead", "lookaround+sam", "lookahead+sam")


@dataclass(frozen=True, kw_only=True)
class TrajectoryOptions(MeasureOptions):
    """Train on from a run's weights, and draw every branch's and the average's accuracy step by step.

    Writes trajectory.png, trajectory.svg and trajectory.csv: accuracies, spread of the branches, angles between their
    displacements. A RUN is a folder OUT/METHOD/seed-SEED of lookaround train, or a safetensors file; its experiment's
    configuration gives batches, augmentations, k and the inner optimizer.

    lookaround landscape trajectory runs/digits/lookaround/seed-0 --rounds 6 --lr 0.02
    """

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN...")]
    """One run."""
    rounds: int = 5
    """Rounds to record."""
    start: Literal["run", "scratch"] = "run"
    """Begin with the run's weights, or with initial weights drawn from its seed."""
    method: str | None = None
    """lookaround, lookahead, lookaround+sam or lookahead+sam. None: the run's own, or lookaround if it is another."""
    k: int | None = None
    """Inner steps in a round. None: the experiment's."""
    lr: float | None = None
    """Learning rate, constant. None: the experiment's peak."""
    barrier_points: int = 0
    """Inner points of the lines between every two branches on which the barrier is measured. 0: no barrier."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rounds", "k"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


def trajectory(words: Sequence[str]) -> None:
    """Runs ``lookaround landscape trajectory``."""
    options = parse(TrajectoryOptions, words, "landscape trajectory")
    check_count("a trajectory", options.runs, "one run", len(options.runs) == 1)
    run = load_run(options.runs[0])
    config = experiment_of([run], options)
    with usage_errors():
        config = replace(config, k=options.k or config.k, lr=config.lr if options.lr is None else options.lr)
    with cpu_threads(options.threads or config.threads):
        data = load_images(config, network_of([run])[1])
        method = _method(options, config, run, _start(options, run).to(data.train_images.device))
        recorder = _record(options, config, run, data, method)
    _write(options, recorder)


def _start(options: TrajectoryOptions, run: Run) -> nn.Module:
    model, architecture = network_of([run])
    if options.start == "scratch":
        torch.manual_seed(stream_seed(run.seed or 0, "weights"))
        model = architecture.build()
    return model.train()


def _method(options: TrajectoryOptions, config: TrainConfig, run: Run, model: nn.Module) -> AveragedTrajectory:
    def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(model(images), labels, label_smoothing=config.label_smoothing)

    name = options.method or (run.method if run.method in _WITH_ROUNDS else "lookaround")
    if name not in _WITH_ROUNDS:
        raise UsageError(f"{name} has no rounds to record; choose from {', '.join(_WITH_ROUNDS)}")
    with usage_errors():
        method = METHODS[name](Setting(model, config, loss))
    assert isinstance(method, AveragedTrajectory)
    return method


def _record(
    options: TrajectoryOptions, config: TrainConfig, run: Run, data: ImageData, method: AveragedTrajectory
) -> Recorder:
    minibatches = Batches(data, config, run.seed or 0)
    steps_each = 1 if isinstance(method, Branches) else config.branches
    needed = math.ceil(options.rounds * config.k / steps_each)
    torch.manual_seed(stream_seed(run.seed or 0, "training"))
    with usage_errors():
        settings = probe_settings(options, data)
        optimizer: Any = method.optimizer  # the recorder's protocol knows no class variable
        recorder = Recorder(optimizer, method.setting.model, barrier_points=options.barrier_points, **settings)
    with recorder:
        for index in range(needed):
            epoch, inside = divmod(index, minibatches.per_epoch)
            method.train_minibatch(next(minibatches.epoch(epoch, inside)))
    return recorder


def _write(options: TrajectoryOptions, recorder: Recorder) -> None:
    last = recorder.records[-1]
    if not all(math.isfinite(value.loss) for value in (last.average, *last.branches)):
        raise UsageError("the branches diverged; choose a lower --lr")
    title = f"accuracy on {options.split} images"
    figure = trajectory_figure(recorder.records, recorder.norm_note, title=title)
    options.out.mkdir(parents=True, exist_ok=True)
    files = [*save_figure(figure, options.out / "trajectory"), options.out / "trajectory.csv"]
    recorder.save_csv(files[-1])
    ends = [r for r in recorder.records if r.step and r.step == max(q.step for q in recorder.records)]
    average = statistics.fmean(r.average.accuracy for r in ends)
    branches = statistics.fmean(value.accuracy for r in ends for value in r.branches)
    print(f"at the ends of {len(ends)} rounds: average {average:.2f} %, branches {branches:.2f} %")
    print("\n".join(map(str, files)))
