"""A replica group of two processes of `test_torchft.py`, under torchrun: data parallel in its branch, and one of them dies once.

torchrun --nproc-per-node 2 replica_ddp.py FOLDER NAME DIES
"""

import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from replica_reference import K, batch, place, sgd
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lookaround import Lookaround
from lookaround.distributed import join, join_replicas

ROUNDS = 8


def main(folder: Path, name: str, dies: bool) -> None:
    join("gloo", timeout=timedelta(seconds=60))
    rank = dist.get_rank()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    parallel = DistributedDataParallel(model)
    manager = join_replicas(name, timeout=timedelta(seconds=60))
    optimizer = Lookaround(
        sgd(model.parameters()), 2, K, model=model, replicas=manager, time_limit=timedelta(minutes=5)
    )
    begun = folder / f"begun-{name}-{rank}"
    first, _ = not begun.exists(), begun.touch()
    while first and len([*folder.glob("begun-*")]) < 4:
        time.sleep(0.02)
    time.sleep(0.5)  # the lighthouse asks nobody to wait for those it has not heard of
    if not first:
        (folder / "back").touch()
    while manager.current_step() <= ROUNDS:
        for branch in optimizer.around():
            number, within = place(optimizer)
            if first and dies and rank == 1 and (number, within) == (1, 1):
                os.kill(os.getpid(), signal.SIGKILL)
            while not dies and number == 4 and not within and not (folder / "back").exists():
                time.sleep(0.02)
            optimizer.zero_grad()
            mine = batch(branch, number * K + within)[rank * 3 : rank * 3 + 3]
            (parallel(mine) - 1).square().mean().backward()
            optimizer.step()
            with (folder / f"turns-{name}-{rank}").open("a") as turns:
                turns.write(f"{number} {branch}\n")
        if not place(optimizer)[1]:
            torch.save(model.state_dict(), folder / f"{name}-{rank}-{place(optimizer)[0]}.pt")
    manager.shutdown()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], bool(int(sys.argv[3])))
