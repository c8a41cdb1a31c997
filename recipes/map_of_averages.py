"""What averaging buys, mapped: methods × conditions × budgets, each tuned with equal effort, then fresh seeds.

    python recipes/map_of_averages.py --out docs/results                    # the whole map
    python recipes/map_of_averages.py --out docs/results --conditions noise --budgets 30 300

scikit-learn's digits, an MLP, d = 3 augmented copies of every minibatch of 32 (shift, small rotation,
perspective), weight decay 5e-4, cosine to 0 after a warm-up of a twentieth. The budget is in gradients of 32 images. Every row is
tuned over the same 18 settings (momentum 0.5 and 0.9 × nine effective rates η / (1 - momentum) a factor of two apart), by the NLL
of held-out images over the same three seeds, 1000 to 1002; then the chosen setting is trained with ten fresh seeds, 0 to 9, and
tested. Minibatches, augmentations and initial weights of a seed are the same for all methods.

Written are ``map.csv`` (every fresh run), ``map-way.csv`` (some of them along their way) and ``map-tried.csv`` (every setting). What
is there already is not computed again. `map_figures.py` makes tables and pictures of them.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from population import CONDITIONS, Condition, Copies, Population, Run, gradients, parts, pretrained, scores
from torch.optim import Optimizer

from lookaround import Lookahead, Lookaround
from lookaround.averaging import RunningAverage, exponential, power, tail
from lookaround.averaging.rules import Rule

BATCH, BRANCHES = 32, 3
BUDGETS = (30, 300, 3000)
RATES = tuple(0.1 * 2**n for n in range(9))
MOMENTA = (0.5, 0.9)
SEARCH, FRESH = (1000, 1001, 1002), tuple(range(10))
SETTINGS = ["condition", "budget", "row", "momentum", "rate"]
METRICS = ["top1", "nll", "ece"]
TRIED, RESULT, WAY = [*SETTINGS, *METRICS], [*SETTINGS, "seed", *METRICS], [*SETTINGS, "seed", "gradients", *METRICS]
# Whose way is written down, and of which conditions.
ROWS_ON_THEIR_WAY = (
    "sgd",
    "ema",
    "sgd:schedule=constant",
    "ema:schedule=constant",
    "lookahead",
    "lookaround:batch=1/d",
)
WAYS = ("clean", "noise")

Make = Callable[[Iterable[torch.Tensor], float], Optimizer]


def _sgd(params: Iterable[torch.Tensor], momentum: float) -> Optimizer:
    return torch.optim.SGD(params, lr=1.0, momentum=momentum)


def lookahead(**settings: object) -> Callable[[Optimizer, int], Optimizer]:
    """Lookahead with these settings around an optimizer."""
    return lambda inner, passes: Lookahead(inner, **settings)


def lookaround(**settings: object) -> Callable[[Optimizer, int], Optimizer]:
    """Lookaround likewise."""
    return lambda inner, passes: Lookaround(inner, **settings)


def dart(inner: Optimizer, passes: int) -> Optimizer:
    """Branches for the second half, averaged once in an epoch of 600 images."""
    return Lookaround(inner, branches=BRANCHES, k=600 // BATCH, start=passes // 2)


def snoo(inner: Optimizer, passes: int) -> Optimizer:
    """k = 20, and Nesterov momentum outside."""
    return Lookahead(inner, k=20, outer=lambda params: torch.optim.SGD(params, lr=0.7, momentum=0.9, nesterov=True))


def ema(points: int) -> Rule:
    """An exponential average over a tenth of the run."""
    return exponential(math.exp(-1 / max(1.0, 0.1 * points)), warmup=2 / 3)


def half(points: int) -> Rule:
    """The mean of the last half."""
    return tail(0.5, total=points)


def cosine(part: float) -> float:
    """To 0."""
    return 0.5 * (1 + math.cos(math.pi * part))


def constant(part: float) -> float:
    """The peak, all the time."""
    return 1.0


def late_constant(part: float) -> float:
    """SWA's: the cosine, and from three quarters on a fifth of the peak."""
    return cosine(part) if part < 0.75 else 0.2


def cooldown(length: float) -> Callable[[float], float]:
    """The peak, and over the last part of the run a line to 0: the control of averages at a constant rate."""
    return lambda part: min(1.0, (1 - part) / length)


def late(points: int) -> Rule:
    """The mean of the last quarter."""
    return tail(0.25, total=points)


@dataclass(frozen=True)
class Training:
    """One training and the rows that come out of it: its end, and averages that were collected beside it.

    Attributes:
        around: puts the method around the inner optimizer; None: the inner optimizer alone.
        ends: the row of the weights at the end; None where an average is the method.
        averages: a rule of the number of points, for each row that is an average. A point is a step, or a round of a method with rounds.
        schedule: the rate's factor, of the part of the run that is over.
        divided: batches are a d-th, and so more.
        branches: copies of a minibatch.
    """

    ends: str | None = None
    around: Callable[[Optimizer, int], Optimizer] | None = None
    averages: dict[str, Callable[[int], Rule]] = field(default_factory=dict)
    schedule: Callable[[float], float] = cosine
    divided: bool = False
    branches: int = BRANCHES

    @property
    def rows(self) -> list[str]:
        return [*([self.ends] if self.ends else []), *self.averages]


TRAININGS = [
    Training("sgd", averages={"ema": ema, "tail": half}),
    Training(
        "sgd:schedule=constant",
        averages={"ema:schedule=constant": ema, "tail:schedule=constant": half},
        schedule=constant,
    ),
    Training(averages={"power-ema:schedule=constant": lambda points: power(0.1)}, schedule=constant),
    Training("sgd:schedule=wsd", schedule=cooldown(0.2)),
    Training("sgd:schedule=wsd,cooldown=0.5", schedule=cooldown(0.5)),
    Training(averages={"swa": late}, schedule=late_constant),
    Training("lookahead", lookahead(k=5, alpha=0.5), {"lookahead+ema": ema}),
    Training("lookahead:alpha=0.8", lookahead(k=5, alpha=0.8)),
    Training("snoo", snoo),
    Training("lookaround", lookaround(branches=BRANCHES, k=5), {"lookaround+tail": half}),
    Training(
        "lookaround:batch=1/d", lookaround(branches=BRANCHES, k=5), {"lookaround+tail:batch=1/d": half}, divided=True
    ),
    Training("dart", dart),
]


def train(
    training: Training,
    condition: Condition,
    budget: int,
    runs: Sequence[Run],
    momentum: float,
    points: Sequence[float] = (),
) -> Iterator[tuple[str, float, Callable[[str], list[dict[str, float]]]]]:
    """Trains a population; at each part of the run in ``points``, and at its end, yields a row, the part and what scores it."""
    batch = BATCH // training.branches if training.divided else BATCH
    passes = budget * BATCH // (batch * training.branches)
    seeds = sorted({run.seed for run in runs})
    starts = {seed: pretrained(seed) for seed in seeds} if condition.start else None
    model = Population(runs, starts)
    inner = torch.optim.SGD(model.parameters(), lr=1.0, momentum=momentum)
    optimizer = inner if training.around is None else training.around(inner, passes)
    collect = Collector(training, model, optimizer, passes)
    # An effective rate η / (1 - momentum) moves as far whatever the momentum.
    rates = torch.tensor([run.rate * (1 - momentum) for run in runs])
    seed_of = torch.tensor([seeds.index(run.seed) for run in runs])
    stops = {max(1, round(part * passes)) for part in points} | {passes}
    for place, copies in enumerate(Copies(condition, seeds, batch, passes, training.branches), start=1):
        part = (place - 1) / passes
        inner.param_groups[0]["lr"] = min(1.0, place / max(1, passes // 20)) * training.schedule(part)
        for branch in optimizer.around() if isinstance(optimizer, Lookaround) else range(len(copies)):
            gradients(model, copies[branch], rates, seed_of)
            optimizer.step()
            collect.after_step()
        if place in stops:
            yield from collect.rows(place / passes, lambda split: scores(model, parts(condition)[split]))


class Collector:
    """The averages beside a training, and the rows at a moment."""

    def __init__(self, training: Training, model: Population, optimizer: Optimizer, passes: int) -> None:
        self.training, self.optimizer = training, optimizer
        steps = passes * training.branches
        rounded = isinstance(optimizer, Lookahead | Lookaround)
        spaced = optimizer.k * (training.branches if isinstance(optimizer, Lookaround) else 1) if rounded else 1
        self.every, self.step = spaced, 0
        rules = [rule(max(1, steps // spaced)) for rule in training.averages.values()]
        self.average = RunningAverage(model, rules) if rules else None

    def after_step(self) -> None:
        self.step += 1
        if self.average is not None and self.step % self.every == 0:
            self.average.update()

    def rows(
        self, part: float, score: Callable[[str], list[dict[str, float]]]
    ) -> Iterator[tuple[str, float, Callable]]:
        if self.training.ends is not None:
            with ExitStack() as stack:
                if hasattr(self.optimizer, "averaged"):
                    stack.enter_context(self.optimizer.averaged())
                yield self.training.ends, part, score
        for index, name in enumerate(self.training.averages):
            if self.average is not None and self.average.count:
                with self.average.averaged(index):
                    yield name, part, score


def main() -> None:
    """Computes what the files do not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of map.csv and map-tried.csv")
    parser.add_argument("--conditions", nargs="+", default=list(CONDITIONS), choices=list(CONDITIONS))
    parser.add_argument("--budgets", nargs="+", type=int, default=list(BUDGETS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.conditions:
        for budget in options.budgets:
            for training in TRAININGS:
                cell(training, CONDITIONS[name], budget, options.out)


def cell(training: Training, condition: Condition, budget: int, out: Path, file: str = "map") -> None:
    """Tunes the rows of one training and tests what was chosen, as far as that is not in the files."""
    key = {"condition": condition.name, "budget": str(budget)}
    results, trials = out / f"{file}.csv", out / f"{file}-tried.csv"
    tried = [row for row in held(trials) if key.items() <= row.items() and row["row"] in training.rows]
    if not tried:
        tried = list(search(training, condition, budget))
        append(trials, TRIED, tried)
    done = {row["row"] for row in held(results) if key.items() <= row.items()}
    if not done.issuperset(training.rows):
        runs = list(confirm(training, condition, budget, tried))
        append(results, RESULT, [run for run in runs if run["gradients"] == budget])
        if condition.name in WAYS:
            append(out / f"{file}-way.csv", WAY, [run for run in runs if run["row"] in ROWS_ON_THEIR_WAY])


def search(training: Training, condition: Condition, budget: int) -> Iterator[dict[str, object]]:
    """Every setting's mean over the search seeds, on held-out images."""
    runs = [Run(rate, seed) for rate in RATES for seed in SEARCH]
    for momentum in MOMENTA:
        for row, _, score in train(training, condition, budget, runs, momentum):
            found = score("valid")
            for rate in RATES:
                mine = [values for run, values in zip(runs, found, strict=True) if run.rate == rate]
                means = {name: statistics.fmean(values[name] for values in mine) for name in METRICS}
                yield named(condition, budget, row, momentum, rate) | means


def confirm(
    training: Training, condition: Condition, budget: int, tried: Sequence[dict[str, object]]
) -> Iterator[dict[str, object]]:
    """The chosen setting of every row with the fresh seeds, on test images, along the way too."""
    chosen = {name: best(tried, name) for name in training.rows}
    for momentum in sorted({momentum for momentum, _ in chosen.values()}):
        rates = sorted({rate for other, rate in chosen.values() if other == momentum})
        runs = [Run(rate, seed) for rate in rates for seed in FRESH]
        points = [n / 10 for n in range(1, 10)]
        for row, part, score in train(training, condition, budget, runs, momentum, points):
            if chosen[row][0] != momentum:
                continue
            for run, values in zip(runs, score("test"), strict=True):
                if run.rate == chosen[row][1]:
                    at = {"seed": run.seed, "gradients": round(part * budget)}
                    yield named(condition, budget, row, momentum, run.rate) | at | values


def named(condition: Condition, budget: int, row: str, momentum: float, rate: float) -> dict[str, object]:
    """The settings of a row of a file."""
    return dict(zip(SETTINGS, (condition.name, budget, row, momentum, rate), strict=True))


def best(tried: Sequence[dict[str, object]], row: str) -> tuple[float, float]:
    """Momentum and rate with the lowest NLL on held-out images."""
    mine = [values for values in tried if values["row"] == row and math.isfinite(float(str(values["nll"])))]
    chosen = min(mine, key=lambda values: float(str(values["nll"])))
    return float(str(chosen["momentum"])), float(str(chosen["rate"]))


def held(path: Path) -> list[dict[str, str]]:
    """The rows of a file, or none."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append(path: Path, names: Sequence[str], rows: Sequence[dict[str, object]]) -> None:
    """Adds rows to a file, with a head if it is new."""
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        if new:
            writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)


if __name__ == "__main__":
    main()
