"""``lookaround soup``: one model whose weights are the mean of several finished ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro
from torch import Tensor

from lookaround.averaging import Plan as SoupPlan
from lookaround.averaging import RecipeLine, greedy_soup, model_stock_files, plan_soup, soup_files
from lookaround.averaging.soups.folders import INDEX
from lookaround.averaging.soups.recipe import METADATA_KEY
from lookaround.commands.checkpoints import expanded, weighed
from lookaround.commands.images import DataOptions, experiment_of, load_images
from lookaround.commands.parsing import parse, usage_errors
from lookaround.commands.progress import progress_bar, said_warnings
from lookaround.commands.runs import Run, diverged, load_runs, network_of, vision
from lookaround.errors import UsageError
from lookaround.experiment import Budget, Plan
from lookaround.experiment.comparison import cpu_threads
from lookaround.experiment.results import NETWORK, RESULT
from lookaround.experiment.running import prepare
from lookaround.methods import Spec
from lookaround.tasks.vision import VisionTask
from lookaround.tasks.vision.data import ImageData, Images
from lookaround.tasks.vision.data.dataset import class_order
from lookaround.tasks.vision.data.images import select
from lookaround.tasks.vision.evaluation import evaluate
from lookaround.tasks.vision.task import SUBSET_SEED


@dataclass(frozen=True, kw_only=True)
class SoupOptions(DataOptions):
    """Average the weights of models into one safetensors file, or into a folder as Hugging Face's libraries read it.

    An IN is a safetensors file, a torch.save file of a state dict, a folder with model.safetensors or with several files
    and their index, or a run's folder. Memory holds some megabytes, whatever the models' size. OUT is a file, or a folder if
    it does not end in .safetensors and the first IN is a folder. The models should have parted from common weights, as
    checkpoints of one run and fine-tuned models have: the mean of models of different initial weights (other seeds) is worth
    nothing.

    lookaround soup soup.safetensors tuned-0.safetensors tuned-1.safetensors tuned-2.safetensors

    lookaround soup averaged runs/x/checkpoint-* --rule lawa:window=5

    lookaround soup --out averaged tuned-0/ tuned-1/ --model-stock pretrained/

    With --greedy, the models are tried from the best to the worst, and each stays in the soup if the soup with it is no
    worse on images that none was trained on; this takes networks of lookaround train.
    """

    paths: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="OUT IN...")]
    """What to write, which must not exist yet, and the models. With --out, the models alone."""
    out: Path | None = None
    """What to write. Takes the place of what is there, unless that is one of the models or a folder of other things."""
    weights: tuple[float, ...] = ()
    """Weight of each model, scaled to add up to one. Empty: equal ones."""
    rule: str | None = None
    """Weigh checkpoints of one run by their steps, which are the numbers in their names: uniform, tail:fraction=0.5,
    lawa:window=5,every=2, exponential:decay=0.9, power:width=0.1 or power:gamma=2 (the power-function EMA),
    decay:shape=1-sqrt,fraction=0.5 (in place of a decay of the learning rate: WSM; linear, cosine, 1-sqrt)."""
    model_stock: Path | None = None
    """The model that the models were fine-tuned from: go from there to their mean as far as the angle between them says."""
    dry_run: tyro.conf.FlagCreatePairsOff[bool] = False
    """Check everything and print the recipe, and write nothing."""
    hashes: tyro.conf.FlagCreatePairsOff[bool] = True
    """Write the hashes of the models' files into the soup; --no-hashes leaves them out, which is faster."""
    shard_size: str | None = None
    """Cut a folder's files at this size, such as 5GB. None: as the first model is cut."""
    greedy: tyro.conf.FlagCreatePairsOff[bool] = False
    """Choose among the models by their accuracy on held-out images."""
    split: Literal["held-out", "test"] = "held-out"
    """Images to choose on: training images that no model saw (set aside by their experiment, or left out by
    --train-images), or the test images, which then test nothing any longer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ways = {
            "--weights": self.weights,
            "--rule": self.rule,
            "--model-stock": self.model_stock,
            "--greedy": self.greedy,
        }
        chosen = [name for name, value in ways.items() if value]
        if len(chosen) > 1:
            raise ValueError(
                f"{' and '.join(chosen)} are two answers to how much of each model is in the soup; leave one out"
            )


def soup(words: Sequence[str]) -> None:
    """Runs ``lookaround soup``."""
    options = parse(SoupOptions, words, "soup")
    out, models = _out_and_models(options)
    files = [_model_file(path) for path in expanded(models)]
    if not files:
        raise UsageError("a soup needs at least one model; give OUT and then IN…")
    _check_out(out, files, explicit=options.out is not None)
    weights: Sequence[float] | None = options.weights or None
    if options.greedy:
        files = _greedy(options, files)
    if options.rule is not None:
        files, weights = weighed(files, options.rule)
    _cook(options, out, files, weights)


def _out_and_models(options: SoupOptions) -> tuple[Path, tuple[str, ...]]:
    if options.out is not None:
        return options.out, options.paths
    if not options.paths:
        raise UsageError("nothing said; give OUT and then the models, or --out OUT; see lookaround soup --help")
    return Path(options.paths[0]), options.paths[1:]


def _model_file(path: Path) -> Path:
    """The file of a run's folder; other folders and files are taken as they are."""
    if path.is_dir() and diverged(path):
        raise UsageError(f"{path} holds no network: {diverged(path)}")
    file = path / NETWORK if (path / RESULT).is_file() else path
    holds = file.is_file() or any((*path.glob("*.safetensors"), *path.glob("*.index.json"), *path.glob("*.bin")))
    if not holds:
        missing = path / NETWORK if path.is_dir() else path
        raise UsageError(f"there is no {missing}; an IN is a safetensors file, a torch.save file or a model's folder")
    return file


def _check_out(out: Path, files: Sequence[Path], *, explicit: bool) -> None:
    """A model is never written over by accident: OUT may be the first of the files that a pattern stands for."""
    if any(out.exists() and out.samefile(file) for file in files):
        raise UsageError(f"{out} is one of the models and would be written over; choose another OUT")
    if not out.resolve().parent.is_dir():
        raise UsageError(f"{out} cannot be written: there is no folder {out.parent}")
    empty = out.is_dir() and not any(out.iterdir())
    if out.exists() and not explicit and not empty:
        raise UsageError(f"{out} exists already; if it is to be replaced, and all others are models, say --out {out}")


def _cook(options: SoupOptions, out: Path, files: Sequence[Path], weights: Sequence[float] | None) -> None:
    size = _bytes(options.shard_size)
    with usage_errors(), said_warnings():
        if options.dry_run:
            all_files = [*files] if options.model_stock is None else [options.model_stock, *files]
            _print_plan(plan_soup(out, all_files, weights=weights, shard_size=size), options.model_stock)
            return
        with progress_bar() as progress:
            make = partial(soup_files, weights=weights)
            if options.model_stock is not None:
                make = partial(model_stock_files, start=options.model_stock)
            recipe = make(out=out, inputs=files, hashes=options.hashes, shard_size=size, progress=progress)
    _print_recipe(recipe)
    where = f"the whole hashes are in its {'index' if (out / INDEX).is_file() else 'metadata'}, under {METADATA_KEY}"
    print(f"written: {out}{f' ({where})' if options.hashes else ''}")


def _bytes(text: str | None) -> int | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)\s*([KMGT]?)i?B?", text.strip(), re.IGNORECASE)
    if found is None or not int(found[1]):
        raise UsageError(f"--shard-size is a number of bytes such as 5GB or 500MB, got {text!r}")
    return int(found[1]) * int(1000 ** " KMGT".index(found[2].upper() or " "))


def _print_plan(plan: SoupPlan, start: Path | None) -> None:
    if start is None:
        _print_recipe(plan.recipe)
    else:
        print(f"Model Stock between {start} and the mean of {len(plan.recipe) - 1} models, as far as their angles say:")
        for line in plan.recipe[1:]:
            print(f"  {line.file}")
    for file, size in plan.files.items():
        print(f"would be written: {file} ({size / 1e6:,.1f} MB)")


def _print_recipe(recipe: Sequence[RecipeLine]) -> None:
    hashed = any(line.hashes for line in recipe)
    kind = next((found.partition(":")[0] for line in recipe for found in line.hashes.values()), "")
    print(f"{'weight':>8}  {f'{kind:<16}  ' if hashed else ''}file")
    for line in recipe:
        digests = [found.partition(":")[2] for found in line.hashes.values()]
        shown = f"{digests[0][:16] if len(digests) == 1 else f'of {len(digests)} files':<16}  " if hashed else ""
        print(f"{line.weight:>8.4f}  {shown}{line.file}")


def _greedy(options: SoupOptions, files: Sequence[Path]) -> list[Path]:
    """The members of the greedy soup, in the order they were added."""
    runs = load_runs(files)
    plan = experiment_of(runs, options)
    with cpu_threads(options.threads or plan.machine.threads), usage_errors():
        task = load_images(plan, network_of(runs)[1])
        images, labels = _chosen_on(runs, plan, task, options.split)
        score = _accuracy(runs, task.data, images, labels, options.batch_size)
        found = greedy_soup(files, score)
    print(f"accuracy on {len(labels):,} {options.split} images:")
    for index, (file, own) in enumerate(zip(files, found.scores, strict=True)):
        print(f"{own:>7.2f} %  {file}{'' if index in found.members else '  (left out)'}")
    print(f"{found.score:>7.2f} %  the soup of {len(found.members)}\n")
    return [files[index] for index in found.members]


def _chosen_on(runs: Sequence[Run], plan: Plan, task: VisionTask, split: str) -> tuple[Images, Tensor]:
    if split == "test":
        return task.data.test_images, task.data.test_labels
    plans = [run.plan for run in runs if run.plan is not None and vision(run.plan).data == task.config.data]
    alike = {(found.config, found.held_out) for found in plans}
    if task.held_out is not None and len(plans) == len(runs) and len(alike) == 1:
        return task.held_out
    known = [count for count in (vision(found).train_images for found in plans) if count is not None]
    if len(known) < len(runs):
        raise UsageError(
            "no training images are known to be held out from every model: train them with --train-images N, which holds "
            "out the others, or choose on --split test"
        )
    return _left_out(plan, max(known))


def _left_out(plan: Plan, trained_on: int) -> tuple[Images, Tensor]:
    """The training images beyond those that were trained on."""
    everything = replace(plan, config=replace(vision(plan), train_images=None), budget=Budget(), methods=(Spec("sgd"),))
    task = prepare(everything).task
    assert isinstance(task, VisionTask)
    left = class_order(task.clean.train_labels, SUBSET_SEED, proportional=False)[trained_on:].sort().values
    if not len(left):
        raise UsageError("the models were trained on every training image; choose on --split test")
    return select(task.clean.train_images, left), task.clean.train_labels[left]


def _accuracy(
    runs: Sequence[Run], data: ImageData, images: Images, labels: Tensor, batch_size: int
) -> Callable[[dict[str, Tensor]], float]:
    model = network_of(runs)[0].to(images.device)

    def score(state: dict[str, Tensor]) -> float:
        model.load_state_dict(state)
        return evaluate(model, images, labels, prepare=data.normalize, batch_size=batch_size).top1

    return score
