"""A training that goes on by itself from its last checkpoint: what torchrun starts, and starts again when a process has died.

    torchrun --standalone --nproc-per-node 3 --max-restarts 100 goes_on.py FOLDER STEPS EVERY

Every process appends to FOLDER/journal-RANK what it does and when, for those who kill it. The last weights are in FOLDER/final.pt.
"""

import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from lookaround import Lookaround
from lookaround.distributed import BranchBatches, Checkpoints, join, keyed_generator, load_run, save_run

BRANCHES, K, BATCH, SAMPLES = 4, 4, 8, 64


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def samples() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(SAMPLES, 6, generator=generator)
    return inputs, (inputs[:, :3] + 0.3 * torch.randn(SAMPLES, 3, generator=generator)).argmax(1)


def minibatch(branch: int, step: int, per_epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A function of branch and step alone: nothing of the data has to be checkpointed."""
    epoch, index = divmod(step, per_epoch)
    batches = BranchBatches(SAMPLES, BATCH, seed=0, branch=branch)
    batches.set_epoch(epoch)
    inputs, labels = samples()
    chosen = [*batches][index]
    noise = 0.1 * torch.randn(BATCH, 6, generator=keyed_generator(seed=0, branch=branch, step=step))
    return inputs[chosen] + noise, labels[chosen]


class Journal:
    """Lines with the time, of one process."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._file = (folder / f"journal-{rank}").open("a", buffering=1)

    def write(self, *words: object) -> None:
        print(time.time(), os.getpid(), *words, file=self._file)


def train(folder: Path, steps: int, every: int, **settings) -> nn.Module:
    model = network()
    inner = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = Lookaround(inner, BRANCHES, K, model=model, **settings)
    journal = Journal(folder, dist.get_rank() if dist.is_initialized() else 0)
    checkpoints = Checkpoints(folder / "checkpoints")
    first = load_run(checkpoints, model, optimizer) or 0
    journal.write("begins", first)
    for step in range(first, steps):
        for branch in optimizer.around():
            inputs, labels = minibatch(branch, step, SAMPLES // BATCH)
            loss = nn.functional.cross_entropy(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        journal.write("took", step + 1)
        if (step + 1) % every == 0:
            save_run(checkpoints, step + 1, model, optimizer)
            journal.write("saved", step + 1)
    optimizer.average()
    return model


def main(folder: Path, steps: int, every: int) -> None:
    join("gloo", timeout=timedelta(minutes=2))
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("branch",))
    model = train(folder, steps, every, mesh=mesh)
    if dist.get_rank() == 0:
        torch.save(model.state_dict(), folder / "final.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
