"""Many small networks trained in one go, each with a rate and a seed of its own: what makes a map of methods affordable.

The parameters of all runs lie in tensors whose first axis counts the runs, so that one optimizer of the library steps them all; SGD,
Lookahead, Lookaround and every average act on each number by itself, so the runs never meet. A run's rate multiplies its loss, which
is the same as a rate of its own (`tests/recipes/test_population.py` holds a run here against the same run alone).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from lookaround.tasks.vision.data import augmentation

AUGMENTATIONS = ("shift", "small-rotation", "perspective")  # the first three that suit digits
HIDDEN, CLASSES, DECAY, CLIP = 96, 10, 5e-4, 10.0
# Minibatches that are augmented at once: one call for many is cheaper than many calls.
AHEAD = 50
BINS = 15


@dataclass(frozen=True)
class Run:
    """One network of a population: its peak rate, and the seed of its weights, minibatches and augmentations."""

    rate: float
    seed: int


@dataclass(frozen=True)
class Condition:
    """What is trained on: the digits of some classes, how many, how many of their labels random, whose the copies are.

    With ``start`` the body comes from a network that was trained on the digits 0 to 4, one for each seed. A copy past the last
    augmentation begins with the first again.
    """

    name: str
    images: int = 600
    noise: float = 0.0
    copies: str = "independent"
    classes: tuple[int, ...] = tuple(range(10))
    start: bool = False
    augmentations: tuple[str, ...] = AUGMENTATIONS


CONDITIONS = {
    condition.name: condition
    for condition in (
        Condition("clean"),
        Condition("shared", copies="shared"),
        Condition("noise", noise=0.3),
        Condition("finetune", images=100, classes=(5, 6, 7, 8, 9), start=True),
    )
}
_BEFORE = Condition("before", images=600, classes=(0, 1, 2, 3, 4))

Part = tuple[Tensor, Tensor]


@cache
def parts(condition: Condition) -> dict[str, Part]:
    """Images, uint8 ``(n, 1, 8, 8)``, and labels to train on, to choose by and to test on. Only training labels are ever random.

    The split of all digits is the same for every condition, so that no network starts from what it is tested on.
    """
    digits = load_digits()
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(digits.target), generator=generator)
    of = torch.isin(torch.tensor(digits.target)[order], torch.tensor(condition.classes))
    images = torch.tensor(digits.images * 255 / 16).round().to(torch.uint8)[order].unsqueeze(1)
    labels = torch.tensor(digits.target)[order]
    bounds = {"train": (0, 700), "valid": (700, 1100), "test": (1100, len(order))}
    found = {name: (images[a:b][of[a:b]], labels[a:b][of[a:b]]) for name, (a, b) in bounds.items()}
    train, known = (part[: condition.images] for part in found["train"])
    wrong = torch.randperm(len(known), generator=generator)[: round(condition.noise * len(known))]
    known = known.clone()
    known[wrong] = torch.randint(CLASSES, (len(wrong),), generator=generator)
    return {**found, "train": (train, known)}


def normalized(images: Tensor) -> Tensor:
    """Float32 ``(…, 64)`` of about unit scale."""
    return images.flatten(-3).float().div(127.5).sub(1)


class Population(nn.Module):
    """An MLP of one hidden layer for each run."""

    def __init__(self, runs: Sequence[Run], starts: dict[int, list[Tensor]] | None = None) -> None:
        super().__init__()
        networks = [_network(run.seed, None if starts is None else starts[run.seed]) for run in runs]
        self.weights = nn.ParameterList(torch.stack(same) for same in zip(*networks, strict=True))

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(runs, n, classes)`` of images ``(runs, n, 64)``."""
        x = images
        for layer in range(0, len(self.weights), 2):
            x = torch.baddbmm(self.weights[layer + 1], x, self.weights[layer])
            x = x.relu() if layer + 2 < len(self.weights) else x
        return x


def _network(seed: int, start: list[Tensor] | None) -> list[Tensor]:
    torch.manual_seed(seed)
    layers = nn.Linear(64, HIDDEN), nn.Linear(HIDDEN, CLASSES)
    drawn = [tensor.detach() for layer in layers for tensor in (layer.weight.T, layer.bias[None])]
    return drawn if start is None else [*start[:2], *drawn[2:]]


class Copies:
    """The augmented copies of every minibatch, the same for all runs of a seed.

    Args:
        condition: names the data.
        seeds: one for each set of minibatches.
        batch: images in a minibatch.
        passes: minibatches of the run; each is seen in every augmentation.
        branches: copies of a minibatch.
    """

    def __init__(self, condition: Condition, seeds: Sequence[int], batch: int, passes: int, branches: int) -> None:
        self.images, self.labels = parts(condition)["train"]
        self.passes, self.branches = passes, branches
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        streams = branches if condition.copies == "independent" else 1
        self.chosen = torch.stack([self._orders(batch, streams, generator) for generator in self.generators])
        names = condition.augmentations
        self.augment = [augmentation(names[branch % len(names)]) for branch in range(branches)]

    def _orders(self, batch: int, streams: int, generator: torch.Generator) -> Tensor:
        """Indices ``(passes, streams, batch)``: every image once, in a new order, before any comes again."""
        needed = self.passes * batch
        epochs = -(-needed // len(self.labels))
        orders = [
            torch.cat([torch.randperm(len(self.labels), generator=generator) for _ in range(epochs)])[:needed]
            for _ in range(streams)
        ]
        return torch.stack(orders).view(streams, self.passes, batch).transpose(0, 1)

    def __iter__(self) -> Iterator[list[Part]]:
        """For each pass its copies: images ``(seeds, batch, 64)`` and labels ``(seeds, batch)``."""
        for first in range(0, self.passes, AHEAD):
            blocks = [self._block(branch, slice(first, first + AHEAD)) for branch in range(self.branches)]
            for place in range(min(AHEAD, self.passes - first)):
                yield [(images[:, place], labels[:, place]) for images, labels in blocks]

    def _block(self, branch: int, which: slice) -> Part:
        chosen = self.chosen[:, which, branch % self.chosen.shape[2]]
        images = [
            self.augment[branch](self.images[own.flatten()], generator)
            for own, generator in zip(chosen, self.generators, strict=True)
        ]
        shape = (*chosen.shape, 1, 8, 8)
        return normalized(torch.stack(images).view(shape)), self.labels[chosen]


@torch.no_grad()
def scores(model: Population, part: Part) -> list[dict[str, float]]:
    """Top-1 accuracy and calibration error in percent, NLL in nats, of every network; bins as in `lookaround evaluate`."""
    images, labels = part
    runs = len(model.weights[0])
    logits = model(normalized(images).expand(runs, -1, -1)).double()
    nll = F.cross_entropy(logits.transpose(1, 2), labels.expand(runs, -1), reduction="none").mean(1)
    confidence, guess = logits.softmax(2).max(2)
    hits = (guess == labels).double()
    which = (confidence * BINS).ceil().long().sub(1).clamp(0, BINS - 1)
    gaps = torch.zeros(runs, BINS, dtype=torch.float64).scatter_add_(1, which, confidence - hits)
    columns = {"top1": 100 * hits.mean(1), "nll": nll, "ece": 100 * gaps.abs().sum(1) / len(labels)}
    return [{name: float(values[run]) for name, values in columns.items()} for run in range(runs)]


def gradients(model: Population, copy: Part, rates: Tensor, seed_of: Tensor) -> None:
    """The gradient of every run's loss with weight decay, times its rate, clipped to a norm of 10 before that.

    The clipping keeps a run at a rate that is too high from reaching infinity and taking its neighbours along.
    """
    images, labels = copy
    logits = model(images[seed_of])
    losses = F.cross_entropy(logits.transpose(1, 2), labels[seed_of], reduction="none").mean(1)
    model.zero_grad()
    losses.sum().backward()
    grads = [weight.grad for weight in model.weights]
    torch._foreach_add_(grads, [weight.detach() for weight in model.weights], alpha=DECAY)
    norms = torch.stack([grad.flatten(1).norm(dim=1) for grad in grads]).norm(dim=0)
    scale = rates * (CLIP / norms.clamp(min=CLIP))
    for grad in grads:
        grad.mul_(scale[:, None, None])


@cache
def pretrained(seed: int) -> list[Tensor]:
    """The weights of a network that was trained on the digits 0 to 4: 300 steps of SGD, cosine to 0."""
    model = Population([Run(0.1, seed)])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    for copies in Copies(_BEFORE, [seed], 32, 100, 3):
        for copy in copies:
            gradients(model, copy, torch.tensor([0.1]), torch.tensor([0]))
            optimizer.step()
        schedule.step()
    return [weight.detach()[0] for weight in model.weights]
