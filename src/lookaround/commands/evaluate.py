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
from lookaround.commands.runs import Run, each_run, load_run, load_runs, network_of, vision
from lookaround.commands.texts import evaluated, text_metrics, text_task
from lookaround.errors import UsageError
from lookaround.experiment import Plan
from lookaround.experiment.comparison import cpu_threads
from lookaround.experiment.running import device_named
from lookaround.experiment.tables import fitted
from lookaround.tasks.checks import check_ranges


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(DataOptions):
    """Measure finished networks: accuracy, likelihood, calibration error; of text perplexity and bits per byte, or BLEU and chrF.

    A RUN is a folder OUT/METHOD/seed-SEED of lookaround train, its safetensors file, or a soup of some; OUT itself stands for all
    of its finished runs. Images are normalized as
    the networks were trained; text is read in the networks' own tokens, and --root may be another folder with a test text, or for
    language models a file.

    lookaround evaluate runs/digits/sgd/seed-0 soup.safetensors
    """

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN...")]
    """Networks of one architecture, or of one task on text."""
    split: Literal["test", "train"] = "test"
    """Images to measure on: the test images, or those trained on, not augmented. Text is measured on its test part."""
    beam: int | None = None
    """Of translators: hypotheses of the search, 1 is greedy. None: as in their experiment."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, {"beam": (1, None)})


def evaluate(words: Sequence[str]) -> None:
    """Runs ``lookaround evaluate``."""
    options = parse(EvaluateOptions, words, "evaluate")
    if not options.runs:
        raise UsageError("nothing to evaluate; give runs of lookaround train or safetensors files")
    options = replace(options, runs=tuple(each_run(options.runs)))
    tasks = {text_task(run) for run in options.runs}
    lines = _of_images(options) if tasks == {None} else _of_text(options, tasks)
    print(fitted(lines[0][0], [cells for _, cells in lines]))


def _of_text(options: EvaluateOptions, tasks: set[str | None]) -> list[tuple[list[str], list[str]]]:
    names = [load_run(run).name for run in options.runs]
    (task, *others) = sorted(name or "no text" for name in tasks)
    if others:
        raise UsageError(f"these are networks of {' and '.join([task, *others])}; give those of one task")
    if options.data is not None or options.split != "test":
        raise UsageError(f"--data and --split choose images, and these are networks of {task}; pass --root")
    metrics = text_metrics(task)
    with cpu_threads(options.threads), usage_errors():
        device = device_named(options.device)
        found = [evaluated(run, options.root, device, options.beam) for run in options.runs]
    header = ["network", *(metric.title for metric in metrics)]
    shown = [[f"{scores[metric.name]:.{metric.digits}f}" for metric in metrics] for scores in found]
    return [(header, [name, *cells]) for name, cells in zip(names, shown, strict=True)]


def _of_images(options: EvaluateOptions) -> list[tuple[list[str], list[str]]]:
    runs = load_runs(options.runs)
    if options.beam is not None:
        raise UsageError(
            f"--beam {options.beam} is how translations are searched for, and these are networks of images; leave it out"
        )
    plan = _plan(runs, options)
    with cpu_threads(options.threads or plan.machine.threads), usage_errors(), torch.inference_mode():
        return [_line(run, plan, options.split) for run in runs]


def _plan(runs: Sequence[Run], options: EvaluateOptions) -> Plan:
    plan = experiment_of(runs, options)
    return replace(plan, config=replace(vision(plan), eval_batch_size=options.batch_size))


def _line(run: Run, plan: Plan, split: Literal["test", "train"]) -> tuple[list[str], list[str]]:
    model, architecture = network_of([run])
    task = load_images(plan, architecture)
    found = task.evaluate(model.to(task.device), split)
    header = ["network", *(metric.title for metric in task.metrics)]
    return header, [run.name, *(f"{found[metric.name]:.{metric.digits}f}" for metric in task.metrics)]
