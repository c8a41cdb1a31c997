"""The orderings in the papers' tables, asked again at the scale of `map_of_averages.py`: the same networks, tuning and seeds.

    python recipes/orderings_of_the_papers.py --out docs/results

300 gradients of 32 images unless the row says otherwise; every row tuned over the 18 settings, ten fresh seeds. Written are
``orderings.csv`` and ``orderings-tried.csv``; `map_figures.py` makes the tables. The first column says which table is asked:

==============  ============================================================================================================
augmentations   001 Table 6: one augmentation or three, with branches that are averaged and without
branches d      001 Table 7: d branches, each on an augmentation of its own; and SGD on the same copies
period          001 Figure 5: k
k and alpha     002 Table 5
momentum        002 section 5: what an average does to the inner momentum
inside rounds   001 Figure 6: the branches after four of five steps, and their average; in ``orderings-rounds.csv``
==============  ============================================================================================================
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from map_of_averages import FRESH, METRICS, Training, append, cell, cosine, lookahead, lookaround
from population import CONDITIONS, Condition, Copies, Population, Run, gradients, parts, scores

from lookaround import Lookaround

BUDGET = 300
FIVE = ("shift", "small-rotation", "perspective", "rand-augment", "none")
MODES = ("maintain", "interpolate", "reset")
Question = tuple[Training, Condition, int]


def questions() -> Iterator[Question]:
    """Every training with the condition and the budget that it is asked at."""
    for name, augmentations in (("one augmentation", FIVE[:1]), ("three augmentations", FIVE[:3])):
        condition = Condition(f"augmentations: {name}", augmentations=augmentations)
        yield Training("sgd"), condition, BUDGET
        yield Training("lookaround:k=5", lookaround(branches=3, k=5)), condition, BUDGET
    for d in range(1, 6):
        condition = Condition(f"branches d={d}", augmentations=FIVE[:d])
        for budget in sorted({BUDGET, 100 * d}):
            yield Training("sgd", branches=d), condition, budget
            yield Training("lookaround:k=5", lookaround(branches=d, k=5), branches=d), condition, budget
    for k in (1, 2, 5, 10, 25, 50, 100):
        yield Training(f"lookaround:k={k}", lookaround(branches=3, k=k)), Condition("period"), BUDGET
    yield Training("sgd"), Condition("k and alpha"), BUDGET
    for k in (5, 10):
        for alpha in (0.5, 0.8):
            own = Training(f"lookahead:k={k},alpha={alpha}", lookahead(k=k, alpha=alpha))
            yield own, Condition("k and alpha"), BUDGET
    for mode in MODES:
        ahead = Training(f"lookahead:inner_state={mode}", lookahead(k=5, alpha=0.5, inner_state=mode))
        around = Training(f"lookaround:inner_state={mode}", lookaround(branches=3, k=5, inner_state=mode))
        yield ahead, Condition("momentum of lookahead"), BUDGET
        yield around, Condition("momentum of lookaround"), BUDGET


def inside_rounds(rate: float, momentum: float = 0.9, k: int = 5) -> Iterator[dict[str, object]]:
    """Before the last step of every round: each branch's scores on test images and those of the average, for every fresh seed."""
    runs = [Run(rate, seed) for seed in FRESH]
    model, passes = Population(runs), BUDGET // 3
    inner = torch.optim.SGD(model.parameters(), lr=1.0, momentum=momentum)
    optimizer = Lookaround(inner, branches=3, k=k)
    rates, seed_of = torch.full((len(runs),), rate * (1 - momentum)), torch.arange(len(runs))
    test = parts(CONDITIONS["clean"])["test"]
    for place, copies in enumerate(Copies(CONDITIONS["clean"], FRESH, 32, passes, 3), start=1):
        inner.param_groups[0]["lr"] = min(1.0, place / (passes // 20)) * cosine((place - 1) / passes)
        key = {"rate": rate, "gradients": 3 * (place - 1)}
        if place % k == 0:
            with optimizer.averaged():
                yield from _seeds({**key, "who": "average"}, scores(model, test))
        for branch in optimizer.around():
            if place % k == 0:
                yield from _seeds({**key, "who": f"branch {branch}"}, scores(model, test))
            gradients(model, copies[branch], rates, seed_of)
            optimizer.step()


def _seeds(key: dict[str, object], found: list[dict[str, float]]) -> Iterator[dict[str, object]]:
    for seed, values in zip(FRESH, found, strict=True):
        yield {**key, "seed": seed, **values}


def main() -> None:
    """Computes what the files do not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of orderings.csv and orderings-tried.csv")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for training, condition, budget in questions():
        cell(training, condition, budget, options.out, "orderings")
    path = options.out / "orderings-rounds.csv"
    if not path.exists():
        rows = [row for rate in (0.8, 3.2) for row in inside_rounds(rate)]
        append(path, ["rate", "gradients", "who", "seed", *METRICS], rows)


if __name__ == "__main__":
    main()
