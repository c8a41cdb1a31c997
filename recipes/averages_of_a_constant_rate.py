"""What the averages of one run at a constant rate are worth, against runs whose rate comes down: scikit-learn's digits, an MLP.

    python recipes/averages_of_a_constant_rate.py --out docs/results/constant-rate.csv

Every run at a constant rate collects all averages in one pass, so that they share its seeds, weights and minibatches; the decays
(linear and 1-sqrt over the last half, and cosine over the whole) are runs of their own with the same seeds and budget: 900 steps
of 32 images. A fifth of the training labels are replaced at random, so that the noise of the end matters; none with ``--noise 0``.
For every row the rate is the one of six with the lowest validation NLL over three seeds (100 to 102); what is reported is the test
NLL of ten others (0 to 9).
The measured result stands in docs/choosing.md. Under a minute of one core.
"""

import argparse
import csv
import math
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from lookaround.averaging import RunningAverage, emulated_decay, exponential, lawa, power, tail, uniform

STEPS, BATCH, EPOCH, DECAY = 900, 32, 36, 1e-4
RATES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
SELECTION, CONFIRMATION = (100, 101, 102), range(10)
AVERAGES = {
    "uniform": uniform(),
    "tail 0.5": tail(0.5, total=STEPS),
    "EMA 0.98": exponential(0.98),
    "EMA 0.995": exponential(0.995),
    "power 0.05": power(0.05),
    "power 0.10": power(0.10),
    "power 0.20": power(0.20),
    "LAWA 6, an epoch apart": lawa(6, every=EPOCH),
    "WSM linear, last half": emulated_decay("linear", fraction=0.5, total=STEPS),
    "WSM 1-sqrt, last half": emulated_decay("1-sqrt", fraction=0.5, total=STEPS),
}
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant rate, last weights": lambda t: 1.0,
    "linear decay, last half": lambda t: min(1.0, 2 * (1 - t)),
    "1-sqrt decay, last half": lambda t: 1.0 if t < 0.5 else 1 - math.sqrt(2 * t - 1),
    "cosine decay": lambda t: (1 + math.cos(math.pi * t)) / 2,
}


def data(noise: float) -> dict[str, tuple[Tensor, Tensor]]:
    """Training (a share ``noise`` of the labels random), validation and test digits; the split is the same for all seeds."""
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 8 - 1
    labels = torch.tensor(digits.target)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(labels), generator=generator)
    parts = dict(zip(("train", "valid", "test"), order.split([1077, 360, 360]), strict=True))
    noisy = labels.clone()
    wrong = parts["train"][: int(noise * len(parts["train"]))]
    noisy[wrong] = torch.randint(10, (len(wrong),), generator=generator)
    return {name: (images[part], (noisy if name == "train" else labels)[part]) for name, part in parts.items()}


class Population(nn.Module):
    """One MLP for each rate and seed, in tensors whose first axis counts them: they never meet, and train in one go."""

    def __init__(self, runs: list[tuple[float, int]]) -> None:
        super().__init__()
        networks = [self._network(seed) for _, seed in runs]
        self.weights = nn.ParameterList(torch.stack(parts) for parts in zip(*networks, strict=True))

    @staticmethod
    def _network(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        layers = nn.Linear(64, 128), nn.Linear(128, 10)
        return [t.detach() for layer in layers for t in (layer.weight.T, layer.bias[None])]

    def losses(self, images: Tensor, labels: Tensor) -> Tensor:
        """The mean NLL of every network; images (runs, n, 64), labels (runs, n)."""
        first, first_bias, second, second_bias = self.weights
        hidden = torch.baddbmm(first_bias, images, first).relu()
        logits = torch.baddbmm(second_bias, hidden, second)
        return F.cross_entropy(logits.transpose(1, 2), labels, reduction="none").mean(1)


def evaluated(model: Population, parts: dict[str, tuple[Tensor, Tensor]], runs: int) -> list[tuple[float, float]]:
    """Validation and test NLL of every network."""
    with torch.no_grad():
        valid, test = (
            model.losses(x.expand(runs, -1, -1), y.expand(runs, -1)).tolist()
            for x, y in (parts["valid"], parts["test"])
        )
    return list(zip(valid, test, strict=True))


def train(
    schedule: str, runs: list[tuple[float, int]], noise: float
) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    """All runs of one schedule; yields a row's name and losses for the last weights and, at a constant rate, for every average."""
    parts = data(noise)
    images, labels = parts["train"]
    model = Population(runs)
    generators = [torch.Generator().manual_seed(seed) for _, seed in runs]
    rates = torch.tensor([rate for rate, _ in runs])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    factor = SCHEDULES[schedule]
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(step / STEPS))
    average = RunningAverage(model, list(AVERAGES.values()))
    constant = schedule == "constant rate, last weights"
    for _ in range(STEPS):
        batch = torch.stack([torch.randint(len(labels), (BATCH,), generator=g) for g in generators])
        decay = sum(w.square().flatten(1).sum(1) for w in model.weights) * (DECAY / 2)
        optimizer.zero_grad()
        (rates * (model.losses(images[batch], labels[batch]) + decay)).sum().backward()  # a rate for every run
        optimizer.step()
        scheduler.step()
        if constant:
            average.update()
    yield schedule, evaluated(model, parts, len(runs))
    for which, name in enumerate(AVERAGES if constant else ()):
        with average.averaged(which):
            yield name, evaluated(model, parts, len(runs))


def main() -> None:
    """Choose rates, confirm them, write every run and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--noise", type=float, default=0.2, help="the share of random training labels")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs = [(rate, seed) for rate in RATES for seed in (*SELECTION, *CONFIRMATION)]
    rows = [
        {"row": name, "rate": rate, "seed": seed, "valid": valid, "test": test}
        for schedule in SCHEDULES
        for name, values in train(schedule, runs, arguments.noise)
        for (rate, seed), (valid, test) in zip(runs, values, strict=True)
    ]
    with arguments.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    report(rows)


def report(rows: list[dict[str, object]]) -> None:
    """For every row its best rate, its test NLL, and the paired difference to the cosine decay with a 95 % interval."""
    chosen = {}
    for name in dict.fromkeys(r["row"] for r in rows):
        means = {
            rate: statistics.fmean(
                float(r["valid"]) for r in rows if (r["row"], r["rate"]) == (name, rate) and r["seed"] in SELECTION
            )
            for rate in RATES
        }
        best = min(means, key=lambda rate: means[rate] if math.isfinite(means[rate]) else math.inf)
        chosen[name] = (
            best,
            [float(r["test"]) for r in rows if (r["row"], r["rate"]) == (name, best) and r["seed"] in CONFIRMATION],
        )
    reference = chosen["cosine decay"][1]
    for name, (rate, tests) in sorted(chosen.items(), key=lambda item: statistics.fmean(item[1][1])):
        differences = [a - b for a, b in zip(tests, reference, strict=True)]
        half = (
            2.262 * statistics.stdev(differences) / math.sqrt(len(differences))
        )  # Student's t, nine degrees of freedom
        print(
            f"| {name} | {rate} | {statistics.fmean(tests):.4f} | {statistics.fmean(differences):+.4f} ± {half:.4f} |"
        )


if __name__ == "__main__":
    main()
