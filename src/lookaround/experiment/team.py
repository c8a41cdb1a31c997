"""The processes that run one experiment together: started by torchrun, or this one alone.

All of them go through the same runs. Methods whose branches are spread over them share the work; every other method is computed by each
of them alike, from the same seeds. The first one shows, logs and writes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Value = TypeVar("Value")


@dataclass(frozen=True)
class Team:
    """One process's view.

    Attributes:
        rank, size: from 0, and how many.
        mesh: of one dimension, "branch"; None for one process.
    """

    rank: int = 0
    size: int = 1
    mesh: DeviceMesh | None = None

    @property
    def first(self) -> bool:
        """Whether this process shows and writes."""
        return self.rank == 0

    def from_first(self, make: Callable[[], Value]) -> Value:
        """What the first process makes; an error there is one everywhere."""
        if self.size == 1:
            return make()
        told: list[Any] = [None, None]
        if self.first:
            try:
                told[0] = make()
            except Exception as error:
                told[1] = error
        dist.broadcast_object_list(told, src=0)
        if told[1] is not None:
            raise told[1]
        value: Value = told[0]
        return value

    def gathered(self, value: Value) -> list[Value]:
        """What every process has, on the first; nothing on the others."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size if self.first else []
        dist.gather_object(value, values if self.first else None, dst=0)
        return values

    def agreed(self, number: int | None) -> int | None:
        """The largest number that some process has, on all of them: a signal that came to one stops all."""
        if self.size == 1:
            return number
        most = torch.tensor(number or 0)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return int(most) or None

    def total(self, values: Tensor) -> Tensor:
        """The sum over processes."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values


def restarted() -> bool:
    """Whether torchrun has started these processes again, after one of them died: then the experiment is gone on with."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@contextmanager
def team() -> Iterator[Team]:
    """The processes that torchrun has started, with their process group while the context lasts."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Team()
        return
    from torch.distributed.device_mesh import init_device_mesh

    from lookaround.distributed import join

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    join("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    try:
        yield Team(dist.get_rank(), size, init_device_mesh(device, (size,), mesh_dim_names=("branch",)))
    finally:
        dist.destroy_process_group()
