"""A program that comes to its end while an average is under way to which another process never comes.

    python ends_under_way.py FILE

FILE is a key-value store's.
"""

import atexit
import os
import signal
import sys

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from lookaround import Lookaround


def main(file: str) -> None:
    other = os.fork()
    rank = int(not other)
    if other:
        atexit.register(os.kill, other, signal.SIGKILL)
    dist.init_process_group("gloo", store=dist.FileStore(file, 2), rank=rank, world_size=2)
    weight = torch.nn.Parameter(torch.zeros(3))
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("branch",))
    optimizer = Lookaround(torch.optim.SGD([weight], lr=1.0), 2, 2, mesh=mesh, overlap=1)
    if rank:
        signal.pause()
    for _ in range(2):
        for _ in optimizer.around():
            weight.grad = torch.ones_like(weight)
            optimizer.step()
    print("ends", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
