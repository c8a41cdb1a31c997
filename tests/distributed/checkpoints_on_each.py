"""What each process of `test_checkpoints.py` runs."""

import os
import signal
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from lookaround.distributed import Checkpoints, Placement

BRANCHES = 4
WHOLE = torch.arange(12.0).view(6, 2)


def state(rank: int, size: int, value: float) -> dict:
    """One thing of each branch on the process that holds it, one that all have, one that is sharded, and plain values."""
    mesh = init_device_mesh("cpu", (size,))
    return {
        "branches": {
            str(j): {"weight": torch.full((3,), value * (j + 1)), "note": f"{value} {j}" if value else ""}
            for j in Placement(BRANCHES, size, rank).local
        },
        "slow": torch.full((5,), value),
        "sharded": distribute_tensor(WHOLE * value, mesh, [Shard(0)]),
        "round": int(value),
    }


def saves(rank: int, size: int, folder: str, *steps: int) -> None:
    for step in steps:
        Checkpoints(folder).save(step, state(rank, size, float(step)))


def loads(rank: int, size: int, folder: str, step: int) -> None:
    """On any number of processes: each asks for the branches it holds."""
    found = state(rank, size, 0.0)
    assert Checkpoints(folder).load(found) == step
    for j in Placement(BRANCHES, size, rank).local:
        assert found["branches"][str(j)]["weight"].tolist() == [step * (j + 1)] * 3
        assert found["branches"][str(j)]["note"] == f"{float(step)} {j}"
    assert found["slow"].tolist() == [step] * 5
    assert torch.equal(found["sharded"].full_tensor(), WHOLE * step)
    assert found["round"] == step


def dies_in_a_save(rank: int, size: int, folder: str, step: int) -> None:
    """The last process writes its part of nothing."""
    if rank == size - 1:
        FileSystemWriter.write_data = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises((RuntimeError, OSError)):
        Checkpoints(folder).save(step, state(rank, size, float(step)))
    assert [*Path(folder, f"step-{step}").glob("*.distcp")]
    assert not Path(folder, f"step-{step}", ".metadata").exists()


def main(rank: int, size: int, store, folder: str) -> None:
    """One after the other, each among the first few processes: as if a run had been started again on another number of them."""
    among = (
        (3, saves, 5, 7, 9),
        (1, loads, 9),
        (4, loads, 9),
        (1, saves, 11),
        (3, loads, 11),
        (4, dies_in_a_save, 12),
        (3, loads, 11),
    )
    for index, (few, action, *words) in enumerate(among):
        if rank < few:
            own = dist.PrefixStore(str(index), store)
            dist.init_process_group("gloo", store=own, rank=rank, world_size=few, timeout=timedelta(minutes=1))
            action(rank, few, folder, *words)
            dist.destroy_process_group()
            own.set(f"done {rank}", "")
            own.wait([f"done {other}" for other in range(few - (action is dies_in_a_save))], timedelta(minutes=1))
        else:
            dist.PrefixStore(str(index), store).wait([f"done {other}" for other in range(few)], timedelta(minutes=1))
