"""``lookaround evaluate``: finished networks measured on a split, the calibration of their confidence included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from lookaround.commands.images import DataOptions, experiment_of, load_images
from lookaround.commands.parsing import parse, usage_errors
from lookaround.commands.runs import Run, load_runs, network_of, vision
from lookaround.errors import UsageError
from lookaround.experiment import Plan
from lookaround.experiment.comparison import cpu_threads
from lookaround.experiment.tables import fitted


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(DataOptions):
    """Measure finished image networks: accuracy, negative log-likelihood, calibration error.

    A RUN is a folder OUT/METHOD/seed-SEED of lookaround train, its safetensors file, or a soup of some. Images are normalized as
    the networks were trained.

    lookaround evaluate runs/digits/sgd/seed-0 soup.safetensors
    """

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN...")]
    """Networks of one architecture."""
    split: Literal["test", "train"] = "test"
    """Images to measure on: the test images, or those trained on, not augmented."""


def evaluate(words: Sequence[str]) -> None:
    """Runs ``lookaround evaluate``."""
    options = parse(EvaluateOptions, words, "evaluate")
    if not options.runs:
        raise UsageError("nothing to evaluate; give runs of lookaround train or safetensors files")
    runs = load_runs(options.runs)
    plan = _plan(runs, options)
    with cpu_threads(options.threads or plan.machine.threads), usage_errors(), torch.inference_mode():
        lines = [_line(run, plan, options.split) for run in runs]
    print(fitted(lines[0][0], [cells for _, cells in lines]))


def _plan(runs: Sequence[Run], options: EvaluateOptions) -> Plan:
    plan = experiment_of(runs, options)
    return replace(plan, config=replace(vision(plan), eval_batch_size=options.batch_size))


def _line(run: Run, plan: Plan, split: Literal["test", "train"]) -> tuple[list[str], list[str]]:
    model, architecture = network_of([run])
    task = load_images(plan, architecture)
    found = task.evaluate(model.to(task.device), split)
    header = ["network", *(metric.title for metric in task.metrics)]
    return header, [run.name, *(f"{found[metric.name]:.{metric.digits}f}" for metric in task.metrics)]
