"""Collectives on a process group that is made anew for every quorum, and may break in the middle of one."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.distributed_c10d import AllToAllOptions, BroadcastOptions

from lookaround.distributed import wire
from lookaround.distributed.exchange import Exchange


class BrokenLinkError(Exception):
    """Another process has gone, or is slower than the limit."""


class Links(Exchange):
    """Means over those who are there, by `Exchange`, on a group that `torch.distributed` has no name for.

    Args:
        group: of those who are there.
        rows: how many they are, and
        row: which this process is.
        limit: how long one collective may take.
    """

    def __init__(self, group: ProcessGroup, rows: int, row: int, limit: timedelta) -> None:
        self._group, self._wire, self._limit = group, wire.by_name("exact"), limit
        self.rows, self.row, self.sent = rows, row, 0
        # Both halves of an exchange go by the one collective that every backend of torchft has, and the host waits for each.
        self._gloo = True

    def share(self, numbers: Sequence[int], device: torch.device) -> list[list[int]]:
        """What each row says, as many integers from each, over a device that the group sends from."""
        if self.rows == 1:
            return [[*numbers]]
        mine = torch.tensor([*numbers], dtype=torch.int64, device=device).repeat(self.rows, 1)
        said = torch.empty_like(mine)
        self._wait(self._to_each(mine, said))
        answer: list[list[int]] = said.tolist()
        return answer

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """Write the source's values into ``tensor`` on every row."""
        if self.rows == 1:
            return
        options = BroadcastOptions()
        options.rootRank = source
        with _reported():
            self._wait(self._group.broadcast([tensor], options))

    def _to_each(self, data: Tensor, received: Tensor) -> Any:
        with _reported():
            return self._group.alltoall_base(received.view(-1), data.view(-1), [], [], AllToAllOptions())

    def _to_all(self, part: Tensor, received: Tensor) -> Any:
        return self._to_each(part.repeat(self.rows, 1), received)

    def _wait(self, work: Any, last: bool = False) -> None:
        with _reported():
            super()._wait(work, last)


@contextmanager
def _reported() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise BrokenLinkError(str(error)) from error
