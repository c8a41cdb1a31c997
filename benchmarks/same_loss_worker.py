"""One process of `same_loss`: trains one way until the held-out loss is low enough, and says how long that took and what it sent."""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
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
WIRES: dict[str, Any] = {"lookaround": "exact", "lookaround-bfloat16": "bfloat16", "lookaround-int8": "int8"}


def data() -> tuple[Tensor, Tensor]:
    """scikit-learn's 1,797 real digits, shuffled once."""
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    return images[order], torch.tensor(digits.target)[order]


def network(seed: int) -> nn.Module:
    """A convolutional network of 151,000 parameters, of which a step on 64 samples costs more than talking of it."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(1024, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


class Way:
    """A way to train: a model, an optimizer, whose part of which minibatch, and where the weights are that count."""

    def __init__(self, name: str, seed: int, lr: float, k: int, samples: int) -> None:
        rank, size = dist.get_rank(), dist.get_world_size()
        self.model = network(seed)
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
    seconds = loss = 0.0
    volume, step, begin, before = 0, 0, time.perf_counter(), sent()
    for step, chosen in enumerate(way.minibatches(), start=1):
        way.optimizer.zero_grad()
        F.cross_entropy(way.forward(inputs[chosen]), answers[chosen]).backward()
        way.optimizer.step()
        if step % every == 0:
            seconds, volume = seconds + time.perf_counter() - begin, volume + sent() - before
            with way.weights(), torch.no_grad():
                loss = F.cross_entropy(way.model(images[:HELD_OUT]), labels[:HELD_OUT]).item()
            if loss <= target or step >= limit:
                break
            dist.barrier()
            begin, before = time.perf_counter(), sent()
    reached = seconds if loss <= target else None
    return {"seconds": reached, "step": step, "samples": step * BATCH, "bytes": volume, "loss": loss}


def main() -> None:
    """Run as one of the processes, with the environment that torchrun gives; prints a line of JSON on rank 0."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--way", choices=("sgd", "ddp", *WIRES), required=True)
    parser.add_argument("--rates", type=float, nargs="+", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--target", type=float, required=True)
    chosen = parser.parse_args()
    dist.init_process_group("gloo")
    images, _ = data()
    for lr in chosen.rates:
        for seed in chosen.seeds:
            way = Way(chosen.way, seed, lr, chosen.k, len(images) - HELD_OUT)
            result = train(way, 20, chosen.target, 2000)
            if dist.get_rank() == 0:
                print(json.dumps({"lr": lr, "seed": seed, **result}), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
