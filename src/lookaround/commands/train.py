"""``lookaround train``: its words as a configuration, the experiment, what is printed of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from lookaround.commands.parsing import parse, usage_errors
from lookaround.experiment import TrainConfig, display_for, preset
from lookaround.experiment import train as run
from lookaround.experiment.results import MEMBER


@dataclass(frozen=True)
class TrainOptions:
    """Train methods on images at equal budget and compare them.

    Every method consumes the same augmented copies of every minibatch. The defaults shown are those that suit the data
    set: put --data before --help to see another's.
    """

    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    out: Path
    """Folder for everything that comes out; one folder holds one experiment."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Go on with the unfinished experiment in --out, bit for bit."""


def train(words: Sequence[str]) -> None:
    """Runs or resumes an experiment and prints its table."""
    options = parse_train(words)
    comparison = run(options.config, options.out, display_for(Console()), resume=options.resume)
    print(f"\n{comparison.table}\n")
    print("top-1, top-5, NLL: test images, mean ± std over seeds; T-budget: gradient evaluations of a minibatch;")
    print("I-budget: forward passes for one prediction\n")
    print(f"learning curves: {comparison.curves}")
    print(f"averaged models: {options.out}/METHOD/seed-SEED/{comparison.networks[0].name}")
    if any(row.forward_passes not in (1, None) for row in comparison.rows):
        print(f"members of ensembles: {options.out}/METHOD/seed-SEED/{MEMBER.format('N')}")


def parse_train(words: Sequence[str]) -> TrainOptions:
    """Reads the words after ``lookaround train``; what they leave out comes from the data set's preset.

    Raises:
        UsageError: for words that are no options, or a value outside its range.
        SystemExit: after ``--help``.

    Example:
        >>> options = parse_train(["--data", "cifar10", "--seeds", "0", "1", "--lr", "0.05"])
        >>> options.config.model, options.config.seeds, options.config.lr
        ('resnet18', (0, 1), 0.05)
    """
    with usage_errors():
        config = preset(_data_named_in(words))
    return parse(TrainOptions, words, "train", TrainOptions(config, Path("runs") / config.data))


def _data_named_in(words: Sequence[str]) -> str:
    named = TrainConfig.data
    for index, word in enumerate(words):
        if word == "--data" and index + 1 < len(words):
            named = words[index + 1]
        elif word.startswith("--data="):
            named = word.removeprefix("--data=")
    return named
