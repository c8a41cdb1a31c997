"""Networks for the landscape figures in ``docs/``: branches with a common start, their average, SGD and SWA at equal budget.

    python recipes/landscape_cifar.py --run runs/cifar/sgd/seed-0 --images cifar10_jpeg --out runs/cifar/landscape/seed-0

From the run's network, a round of Lookaround trains one branch per augmentation. SGD goes on from the same network over the same
augmented copies of the same minibatches, one after the other; SWA is the uniform average of points on its way. Each
network is saved with norm statistics re-estimated on training images, and its accuracy on all test images of the
experiment is written to ``accuracies.csv`` beside them. ``lookaround landscape`` draws the files (see ``docs/README.md``).
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import vector_to_parameters

from lookaround import Lookaround
from lookaround.averaging import update_norm_stats
from lookaround.averaging.files import atomic
from lookaround.commands.images import batches, load_images, part
from lookaround.commands.runs import load_run, network_of, settings_of_run
from lookaround.landscape import Probe, Value, flatten
from lookaround.tasks.base import Batch, Batches, Minibatch
from lookaround.tasks.streams import stream_seed
from lookaround.tasks.vision import VisionConfig
from lookaround.tasks.vision.data import ImageData
from lookaround.tasks.vision.networks import Architecture, save_network


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Train branches, SGD and SWA from one network, and save them for lookaround landscape."""

    run: Path
    """Finished run of lookaround train to begin with."""
    images: Path
    """Image folder of the run's experiment."""
    out: Path
    """Folder for the networks; OUT/METHOD/seed-SEED in the experiment's folder lets the figures find its configuration."""
    steps: int = 40
    """Minibatches of the round: SGD takes as many steps times the number of branches."""
    swa_every: int = 10
    """Steps of SGD between two points of SWA."""
    lr: float = 0.02
    """Learning rate, constant; momentum and weight decay are the experiment's."""
    seed: int = 100
    """Of minibatches and augmentations."""
    norm_images: int = 2000
    """Training images for norm statistics."""


def minibatches(stream: Batches, steps: int) -> Iterator[Minibatch]:
    """The first ``steps`` minibatches, over as many epochs as it takes."""
    return (Minibatch(stream, position) for position in range(steps))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    """One step on one augmented copy."""
    optimizer.zero_grad()
    cross_entropy(model(batch.inputs), batch.targets).backward()
    optimizer.step()


def train_round(model: nn.Module, sgd: torch.optim.SGD, stream: Batches, steps: int) -> dict[str, Tensor]:
    """The branches after one round without an average in between, and their average."""
    branches = stream.branches
    optimizer = Lookaround(sgd, branches=branches, k=steps, model=model)
    last: deque[Tensor] = deque(maxlen=branches)
    seen = sgd.register_step_post_hook(lambda *_: last.append(flatten(model)))  # before the average step
    for minibatch in minibatches(stream, steps):
        for branch in optimizer.around():
            train(model, optimizer, minibatch.copy(branch))
    seen.remove()
    return {**{f"branch-{b + 1}": weights for b, weights in enumerate(last)}, "average": flatten(model)}


def train_on(model: nn.Module, sgd: torch.optim.SGD, stream: Batches, steps: int, every: int) -> dict[str, Tensor]:
    """SGD over the copies one after the other, and the uniform average of every ``every``-th point."""
    copies = (m.copy(b) for m in minibatches(stream, steps) for b in range(m.branches))
    points = []
    for step, batch in enumerate(copies, start=1):
        train(model, sgd, batch)
        if step % every == 0:
            points.append(flatten(model))
    return {"sgd": flatten(model), "swa": torch.stack(points).mean(0)}


def save(
    settings: Settings, vectors: dict[str, Tensor], model: nn.Module, architecture: Architecture, data: ImageData
) -> None:
    """Write every network and the table of what they reach on the test images."""
    norm = [x for x, _ in batches(data, *part(data, "train", settings.norm_images), 500)]
    probe = Probe(model, batches(data, *part(data, "test", None), 500), norm_batches=norm)
    settings.out.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[str, Value]] = []
    for name, vector in vectors.items():
        probe.move_to(vector)
        rows.append((name, probe.measure()))
        vector_to_parameters(vector, model.parameters())
        update_norm_stats(model, norm)
        save_network(settings.out / f"{name}.safetensors", model, architecture, {})
        print(f"{name:<10} loss {rows[-1][1].loss:.4f}, accuracy {rows[-1][1].accuracy:.2f} %", flush=True)
    with atomic(settings.out / "accuracies.csv") as path, path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("network", "loss", "accuracy"), *((name, *value) for name, value in rows)])


def main(settings: Settings) -> None:
    run = load_run(settings.run)
    if run.plan is None or not isinstance(run.plan.config, VisionConfig):
        raise SystemExit(f"{settings.run} lies in no experiment of lookaround train; pass OUT/METHOD/seed-SEED of one")
    start, architecture = network_of([run])
    config = replace(run.plan.config, root=str(settings.images))
    task = load_images(replace(run.plan, config=config, machine=replace(run.plan.machine, device="cpu")), architecture)
    chosen = settings_of_run(run, task)
    stream = task.batches(settings.seed, chosen.batch, chosen.branches)
    kept = {name: chosen.optimizer[name] for name in ("momentum", "weight_decay")}
    vectors = {"start": flatten(start)}
    for name in ("round", "on"):
        model = deepcopy(start).train()
        torch.manual_seed(stream_seed(settings.seed, "training"))
        sgd = torch.optim.SGD(model.parameters(), settings.lr, **kept)
        if name == "round":
            vectors |= train_round(model, sgd, stream, settings.steps)
        else:
            vectors |= train_on(model, sgd, stream, settings.steps, settings.swa_every)
    save(settings, vectors, start, architecture, task.data)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
