"""One process of the benchmark of branches over processes: DDP and Lookaround take turns on the same model, batch and link.

Prints, on rank 0, a line of JSON: seconds and bytes sent by this process per step, for DDP and for each k, and per average of vectors of
two other lengths, from which the formula's constants come.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from lookaround import Lookaround
from lookaround.distributed import Rows

# Width of a three-layer perceptron, and the batch of a process.
SIZES = {"small": (256, 16), "large": (1024, 16)}


def network(width: int) -> nn.Module:
    """The same weights on every process."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(256, width), nn.ReLU(), nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, 10)
    )


_AVERAGES = 3
# Rounds in a turn where averages overlap with the next one: that of the last is waited for, and overlaps with nothing.
ROUNDS = 4
# Numbers in the vectors whose averages alone are timed: a bucket's two halves go one after the other, several buckets' overlap.
FITTED = {"small": (2**16, 2**19), "large": (3 * 2**19, 2**22)}


class Trainer:
    """A model with its optimizer, and a step on a fixed batch."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, batch: int) -> None:
        self.model, self.optimizer = model, optimizer
        generator = torch.Generator().manual_seed(dist.get_rank())
        self.inputs = torch.randn(batch, 256, generator=generator)
        self.labels = torch.randint(10, (batch,), generator=generator)

    def step(self) -> None:
        """Forward, backward, step."""
        loss = nn.functional.cross_entropy(self.model(self.inputs), self.labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def trainers(size: str, ks: list[int], mesh: DeviceMesh) -> dict[str, Callable[[], int]]:
    """Of each candidate, a function that takes a turn and returns the number of its steps."""
    width, batch = SIZES[size]

    def sgd(model: nn.Module) -> torch.optim.SGD:
        return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def turn(trainer: Trainer, steps: int) -> Callable[[], int]:
        def run() -> int:
            for _ in range(steps):
                trainer.step()
            trainer.optimizer.state_dict()  # waits for what is under way, and sends nothing
            return steps

        return run

    ddp = DistributedDataParallel(network(width))
    alone = network(width)
    candidates = {"ddp": turn(Trainer(ddp, sgd(ddp), batch), 5), "alone": turn(Trainer(alone, sgd(alone), batch), 5)}
    for k, overlap in [(period, j) for period in ks for j in dict.fromkeys((0, 1, period - 1)) if j < period]:
        model = network(width)
        optimizer = Lookaround(sgd(model), dist.get_world_size(), k, model=model, mesh=mesh, overlap=overlap)
        steps = k * ROUNDS if overlap else max(k, 5)
        candidates[f"k={k}" + (f" j={overlap}" if overlap else "")] = turn(Trainer(model, optimizer, batch), steps)
    return candidates | {f"average of {numbers}": bare_average(mesh, numbers) for numbers in FITTED[size]}


def bare_average(mesh: DeviceMesh, numbers: int) -> Callable[[], int]:
    """A turn of averages of a vector, with nothing between them."""
    rows, weights = Rows(mesh, dist.get_world_size()), [torch.zeros(numbers)]

    def run() -> int:
        for turn in range(_AVERAGES):
            with rows.meeting("the benchmark's average"):
                taking_part, _ = rows.agree(turn, weights, [True])
                for mean, (block,) in rows.means([weights], taking_part):
                    torch._foreach_copy_(block, mean)
        return _AVERAGES

    return run


def sent() -> int:
    """Bytes that this process's network interface has sent."""
    return int(Path(f"/sys/class/net/{os.environ['GLOO_SOCKET_IFNAME']}/statistics/tx_bytes").read_text())


def measure(candidates: dict[str, Callable[[], int]], repeats: int) -> dict[str, dict[str, float]]:
    """Medians over turns in which all candidates run once; one warms up. Bytes are those of the interface."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    volume: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(repeats + 1):
        for name, run in candidates.items():
            dist.barrier()
            before, begin = sent(), time.perf_counter()
            steps = run()
            dist.barrier()
            if turn:
                seconds[name].append((time.perf_counter() - begin) / steps)
                volume[name].append((sent() - before) / steps)
    return {name: {"seconds": median(seconds[name]), "bytes": median(volume[name])} for name in candidates}


def main() -> None:
    """Run as one of several processes, with the environment that torchrun gives."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--ks", type=int, nargs="+", required=True)
    parser.add_argument("--repeats", type=int, required=True)
    chosen = parser.parse_args()
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("branch",))
    results = measure(trainers(chosen.size, chosen.ks, mesh), chosen.repeats)
    if dist.get_rank() == 0:
        parameters = sum(p.numel() for p in network(SIZES[chosen.size][0]).parameters())
        print(json.dumps({"parameters": parameters, "results": results}), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
