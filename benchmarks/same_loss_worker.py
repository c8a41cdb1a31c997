"""One process of `same_loss`: trains in several ways in turn to a held-out loss, and says how long each took and what it sent."""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise, product
from typing import Any

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from benchmarks.branches_worker import sent
from lookaround import Lookaround
from lookaround.distributed import BranchBatches

BATCH, HELD_OUT = 64, 360
# One process and its threads; the others wait meanwhile.
ALONE = {"sgd": 1, "sgd, 2 threads": 2}
# Steps between two looks at the held-out loss, and at the most.
EVERY, MOST = 10, 1000
WIRES: dict[str, Any] = {"lookaround": "exact", "lookaround-bfloat16": "bfloat16", "lookaround-int8": "int8"}


def data() -> tuple[Tensor, Tensor]:
    """scikit-learn's 1,797 real digits, shuffled once."""
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    return images[order], torch.tensor(digits.target)[order]


def convolutions(*channels: int, norm: bool) -> list[nn.Module]:
    """Of 3 × 3 at full size, with a maximum of 2 × 2 in the end."""
    layers: list[nn.Module] = []
    for before, after in pairwise((1, *channels)):
        layers += [nn.Conv2d(before, after, 3, padding=1), *([nn.GroupNorm(8, after)] if norm else []), nn.ReLU()]
    return [*layers, nn.MaxPool2d(2), nn.Flatten()]


def small() -> nn.Module:
    """151,000 parameters: half a minibatch costs more than half of a whole one."""
    return nn.Sequential(*convolutions(32, 64, norm=False), nn.Linear(1024, 128), nn.ReLU(), nn.Linear(128, 10))


def deep() -> nn.Module:
    """178,000 parameters, and four times the arithmetic: half a minibatch costs half."""
    return nn.Sequential(*convolutions(64, 64, 64, 64, norm=True), nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 10))


NETWORKS = {"small": small, "deep": deep}


class Way:
    """A way to train: a model, an optimizer, whose part of which minibatch, and where the weights are that count."""

    def __init__(self, name: str, network: str, seed: int, lr: float, k: int, samples: int) -> None:
        rank, size = (0, 1) if name in ALONE else (dist.get_rank(), dist.get_world_size())
        self.meet: Callable[[], object] = nullcontext if name in ALONE else dist.barrier
        torch.manual_seed(seed)
        self.model = NETWORKS[network]()
        sgd = torch.optim.SGD(self.model.parameters(), lr=lr, momentum=0.9)
        self.optimizer: torch.optim.Optimizer = sgd
        self.forward: Callable[[Tensor], Tensor] = self.model
        self.weights: Callable[[], AbstractContextManager[None]] = nullcontext
        if name == "ddp":
            self.forward = DistributedDataParallel(self.model)
        if name in WIRES:
            mesh = init_device_mesh("cpu", (size,), mesh_dim_names=("branch",))
            around = Lookaround(sgd, size, k, model=self.model, mesh=mesh, wire=WIRES[name])
            self.optimizer, self.weights = around, around.averaged
            self.batches = BranchBatches(samples, BATCH // size, seed=seed, branch=rank)
        else:
            self.batches = BranchBatches(samples, BATCH, seed=seed, part=rank, parts=size)

    def minibatches(self) -> Iterator[list[int]]:
        """Epoch after epoch."""
        epoch = 0
        while True:
            self.batches.set_epoch(epoch)
            yield from self.batches
            epoch += 1


def train(way: Way, every: int, target: float, limit: int) -> dict[str, float | None]:
    """Train until the held-out loss, looked at after every so many steps off the clock, is at the target."""
    images, labels = data()
    inputs, answers = images[HELD_OUT:], labels[HELD_OUT:]
    loss, step = 0.0, 0
    way.meet()
    spent, before = (0.0, 0.0, 0), spent_so_far()
    for step, chosen in enumerate(way.minibatches(), start=1):
        way.optimizer.zero_grad()
        F.cross_entropy(way.forward(inputs[chosen]), answers[chosen]).backward()
        way.optimizer.step()
        if step % every == 0:
            now = spent_so_far()
            spent = (spent[0] + now[0] - before[0], spent[1] + now[1] - before[1], spent[2] + now[2] - before[2])
            with way.weights(), torch.no_grad():
                loss = F.cross_entropy(way.model(images[:HELD_OUT]), labels[:HELD_OUT]).item()
            if loss <= target or step >= limit:
                break
            way.meet()
            before = spent_so_far()
    reached = spent[0] if loss <= target else None
    return {"seconds": reached, "processor": spent[1], "step": step, "bytes": spent[2], "loss": loss}


def spent_so_far() -> tuple[float, float, int]:
    """Seconds on the wall, of this process's processor time, and bytes."""
    return time.perf_counter(), time.process_time(), sent()


def main() -> None:
    """Run as one of the processes, with the environment that torchrun gives; prints a line of JSON on rank 0."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--network", choices=NETWORKS, required=True)
    parser.add_argument("--ways", choices=(*ALONE, "ddp", *WIRES), nargs="+", required=True)
    parser.add_argument("--rates", type=float, nargs="+", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--target", type=float, required=True)
    chosen = parser.parse_args()
    dist.init_process_group("gloo")
    samples = len(data()[0]) - HELD_OUT
    for lr, seed, name in product(chosen.rates, chosen.seeds, chosen.ways):
        torch.set_num_threads(ALONE.get(name, 1))
        dist.barrier()
        if name in ALONE and dist.get_rank():
            continue
        result = train(Way(name, chosen.network, seed, lr, chosen.k, samples), EVERY, chosen.target, MOST)
        if dist.get_rank() == 0:
            print(json.dumps({"way": name, "lr": lr, "seed": seed, **result}), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
