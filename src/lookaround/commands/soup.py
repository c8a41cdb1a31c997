"""``lookaround soup``: one model whose weights are the mean of several finished ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from torch import Tensor

from lookaround.averaging import RecipeLine, greedy_soup, soup_files
from lookaround.commands.images import DataOptions, experiment_of, load_images
from lookaround.commands.parsing import parse, usage_errors
from lookaround.commands.runs import Run, diverged, load_runs, network_of
from lookaround.experiment import TrainConfig, UsageError
from lookaround.experiment.comparison import SUBSET_SEED, cpu_threads, prepare
from lookaround.experiment.evaluation import evaluate
from lookaround.experiment.holdout import hold_out
from lookaround.experiment.results import NETWORK
from lookaround.tasks.vision.data import ImageData
from lookaround.tasks.vision.data.dataset import class_order


@dataclass(frozen=True, kw_only=True)
class SoupOptions(DataOptions):
    """Average the weights of finished models into one safetensors file.

    An IN is a safetensors file, a torch.save file of a state dict, or a run's folder. Memory holds some megabytes,
    whatever the models' size. With --greedy, the models are tried from the best to the worst, and each stays in the soup
    if the soup with it is no worse on images that none was trained on; this takes networks of lookaround train. The models
    should have parted from common weights, as fine-tuned ones have: the mean of models of different initial weights (other
    seeds) is worth nothing.

    lookaround soup soup.safetensors tuned-0.safetensors tuned-1.safetensors tuned-2.safetensors
    """

    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """The safetensors file to write."""
    inputs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="IN...")]
    """The models."""
    weights: tuple[float, ...] = ()
    """Weight of each model, scaled to add up to one. Empty: equal ones."""
    greedy: tyro.conf.FlagCreatePairsOff[bool] = False
    """Choose among the models by their accuracy on held-out images."""
    split: Literal["held-out", "test"] = "held-out"
    """Images to choose on: training images that no model saw (set aside by their experiment, or left out by
    --train-images), or the test images, which then test nothing any longer."""


def soup(words: Sequence[str]) -> None:
    """Runs ``lookaround soup``."""
    options = parse(SoupOptions, words, "soup")
    files = [_model_file(path) for path in options.inputs]
    if not files:
        raise UsageError("a soup needs at least one model; give OUT and then IN…")
    if options.out.is_dir() or not options.out.parent.is_dir():
        raise UsageError(f"{options.out} cannot be written: give a file in a folder that exists")
    if options.greedy:
        files = _greedy(options, files)
    with usage_errors():
        recipe = soup_files(options.out, files, weights=options.weights or None)
    _print_recipe(options.out, recipe)


def _model_file(path: Path) -> Path:
    file = path / NETWORK if path.is_dir() else path
    if path.is_dir() and diverged(path):
        raise UsageError(f"{path} holds no network: {diverged(path)}")
    if not file.is_file():
        raise UsageError(f"there is no {file}; an IN is a safetensors file, a torch.save file or a run's folder")
    return file


def _print_recipe(out: Path, recipe: Sequence[RecipeLine]) -> None:
    print(f"{'weight':>8}  {'SHA-256':<16}  file")
    for line in recipe:
        print(f"{line.weight:>8.4f}  {line.sha256[:16]}  {line.file}")
    print(f"written: {out} (the whole hashes are in its metadata, under lookaround.soup)")


def _greedy(options: SoupOptions, files: Sequence[Path]) -> list[Path]:
    """The members of the greedy soup, in the order they were added."""
    if options.weights:
        raise UsageError("--greedy gives its members equal weights; leave --weights out")
    runs = load_runs(files)
    config = experiment_of(runs, options)
    with cpu_threads(options.threads or config.threads), usage_errors():
        data = load_images(config, network_of(runs)[1])
        images, labels = _chosen_on(runs, config, data, options.split)
        score = _accuracy(runs, data, images, labels, options.batch_size)
        found = greedy_soup(files, score)
    print(f"accuracy on {len(labels):,} {options.split} images:")
    for index, (file, own) in enumerate(zip(files, found.scores, strict=True)):
        print(f"{own:>7.2f} %  {file}{'' if index in found.members else '  (left out)'}")
    print(f"{found.score:>7.2f} %  the soup of {len(found.members)}\n")
    return [files[index] for index in found.members]


def _chosen_on(runs: Sequence[Run], config: TrainConfig, data: ImageData, split: str) -> tuple[Tensor, Tensor]:
    if split == "test":
        return data.test_images, data.test_labels
    configs = [run.config for run in runs if run.config is not None and run.config.data == config.data]
    _, set_aside = hold_out(data, config, config.methods[0])
    if set_aside is not None and len(configs) == len(runs) and len(set(configs)) == 1:
        return set_aside
    counts = [c.train_images for c in configs]
    known = [count for count in counts if count is not None]
    if len(known) < len(runs):
        raise UsageError(
            "no training images are known to be held out from every model: train them with --train-images N, which holds "
            "out the others, or choose on --split test"
        )
    whole = prepare(replace(config, train_images=None))
    order = class_order(whole.train_labels, SUBSET_SEED, proportional=False)
    left = order[max(known) :].sort().values
    if not len(left):
        raise UsageError("the models were trained on every training image; choose on --split test")
    return whole.train_images[left], whole.train_labels[left]


def _accuracy(
    runs: Sequence[Run], data: ImageData, images: Tensor, labels: Tensor, batch_size: int
) -> Callable[[dict[str, Tensor]], float]:
    model = network_of(runs)[0].to(images.device)

    def score(state: dict[str, Tensor]) -> float:
        model.load_state_dict(state)
        return evaluate(model, images, labels, prepare=data.normalize, batch_size=batch_size).top1

    return score
