"""``lookaround landscape trajectory``: what happens inside rounds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import nn

from lookaround.commands.images import experiment_of, load_images
from lookaround.commands.measuring import MeasureOptions, check_count, probe_settings
from lookaround.commands.parsing import parse, usage_errors
from lookaround.commands.runs import Run, load_run, network_of
from lookaround.errors import UsageError
from lookaround.experiment import Plan
from lookaround.experiment.comparison import cpu_threads
from lookaround.experiment.running import Prepared, new_method
from lookaround.landscape import Recorder, save_figure, trajectory_figure
from lookaround.methods import Spec
from lookaround.methods.trajectory import AveragedTrajectory, Branches
from lookaround.optim.checks import NotFiniteError
from lookaround.tasks.base import Minibatch
from lookaround.tasks.streams import stream_seed
from lookaround.tasks.vision import VisionTask

# More than a trajectory is ever recorded for; the rate is constant, so how many they are changes nothing.
_MINIBATCHES = 1_000_000
_DIVERGED = "the branches diverged; choose a lower --lr"
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
                raise ValueError(f"--{name} must be at least 1, got {value}")


def trajectory(words: Sequence[str]) -> None:
    """Runs ``lookaround landscape trajectory``."""
    options = parse(TrajectoryOptions, words, "landscape trajectory")
    check_count("a trajectory", options.runs, "one run", len(options.runs) == 1)
    run = load_run(options.runs[0])
    plan = experiment_of([run], options)
    with cpu_threads(options.threads or plan.machine.threads):
        task = load_images(plan, network_of([run])[1])
        method = _method(options, plan, run, task, _start(options, run).to(task.device))
        recorder = _record(options, run, task, method)
    _write(options, recorder)


def _start(options: TrajectoryOptions, run: Run) -> nn.Module:
    model, architecture = network_of([run])
    if options.start == "scratch":
        torch.manual_seed(stream_seed(run.seed or 0, "weights"))
        model = architecture.build()
    return model.train()


def _method(options: TrajectoryOptions, plan: Plan, run: Run, task: VisionTask, model: nn.Module) -> AveragedTrajectory:
    own = run.method if run.method and run.method.partition(":")[0] in _WITH_ROUNDS else "lookaround"
    name = own if options.method is None else options.method
    if name.partition(":")[0] not in _WITH_ROUNDS:
        raise UsageError(f"{name or repr(name)} has no rounds to record; choose from {', '.join(_WITH_ROUNDS)}")
    changed = {key: str(value) for key, value in (("k", options.k), ("lr", options.lr)) if value is not None}
    with usage_errors():
        spec = Spec.parse(name)
        late = {"start": "0"} if "start" in spec.fields() else {}
        spec = spec.with_settings({**changed, **late, "warmup": "0", "schedule": "constant"})
        cost = spec.resolve(task.defaults, task.branches)
        batches = task.batches(run.seed or 0, cost.batch, cost.branches)
        budget = _MINIBATCHES * batches.units * batches.branches * cost.gradients
        method, _ = new_method(
            Prepared(plan, task, budget, _MINIBATCHES / batches.per_epoch), spec, run.seed or 0, model
        )
    assert isinstance(method, AveragedTrajectory)
    return method


def _record(options: TrajectoryOptions, run: Run, task: VisionTask, method: AveragedTrajectory) -> Recorder:
    batches = method.setup.batches
    torch.manual_seed(stream_seed(run.seed or 0, "training"))
    with usage_errors():
        settings = probe_settings(options, task.data)
        optimizer: Any = method.optimizer  # the recorder's protocol knows no class variable
        recorder = Recorder(optimizer, method.setup.model, barrier_points=options.barrier_points, **settings)
    with recorder:
        for position in range(minibatches_of(options.rounds, method)):
            try:
                method.train_minibatch(Minibatch(batches, position))
            except NotFiniteError as error:
                raise UsageError(_DIVERGED) from error
    return recorder


def minibatches_of(rounds: int, method: AveragedTrajectory) -> int:
    """How many minibatches so many rounds take."""
    steps_each = 1 if isinstance(method, Branches) else method.setup.batches.branches
    return math.ceil(rounds * method.optimizer.k / steps_each)


def _write(options: TrajectoryOptions, recorder: Recorder) -> None:
    last = recorder.records[-1]
    if not all(math.isfinite(value.loss) for value in (last.average, *last.branches)):
        raise UsageError(_DIVERGED)
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
