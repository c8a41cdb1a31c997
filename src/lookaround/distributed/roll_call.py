"""Who is there: rows meet before an average, and whoever does not come within a time limit is named."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import main_thread

import torch.distributed as dist
from torch.distributed import ProcessGroup
from torch.distributed.distributed_c10d import PrefixStore

# Between a process that notices a failure and the last of the others that does: connections break within milliseconds.
_GRACE = timedelta(seconds=5)
# One wait for the door; between two of them a process looks whether it still has a reason to wait.
_SLICE = timedelta(seconds=1)


class LostRankError(RuntimeError):
    """Processes that did not come to an average, or left in the middle of one.

    Attributes:
        ranks: their global ranks; empty where the rest could not find out.
    """

    def __init__(self, message: str, ranks: list[int]) -> None:
        super().__init__(message)
        self.ranks = ranks


class RollCall:
    """Meetings of the processes of a group, each with a time limit.

    A collective alone cannot do this: where one process is missing the others wait for as long as the process group allows, half an
    hour by default, and then cannot say for whom. Here each process writes into the group's key-value store where it is, three short
    messages a meeting (0.3 ms on one machine), and a process that has waited for long enough reads who has not come.

    Args:
        group: the processes that meet.
        limit: how long one waits for the others, from when it has come itself.
    """

    def __init__(self, group: ProcessGroup, limit: timedelta) -> None:
        self.limit = limit
        self._ranks = dist.get_process_group_ranks(group)
        self._me = dist.get_group_rank(group, dist.get_rank())
        # A connection of its own: a wait on a shared one would keep the other users of the store waiting.
        self._store = PrefixStore("lookaround", group.get_group_store().clone())
        self._meeting = 0

    @contextmanager
    def meeting(self, what: str) -> Iterator[None]:
        """Wait until all are there; what is inside the context is done together.

        Raises:
            LostRankError: some did not come within the limit, or what is inside failed or took longer than that.
        """
        self._meeting += 1
        self._tell("came")
        self._wait(what)
        try:
            yield
        except RuntimeError as error:
            raise self._failed(what, error) from error
        self._tell("left")

    def _tell(self, where: str) -> None:
        with self._reachable():
            self._store.set(f"rank {self._me}", f"{self._meeting} {where}")

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        try:
            yield
        except dist.DistNetworkError as error:
            raise LostRankError(
                f"rank {self._ranks[self._me]} cannot reach the process group's key-value store: the process that keeps it (rank 0 or "
                "torchrun's agent on the master) is gone; start again from the last checkpoint",
                [],
            ) from error

    def _wait(self, what: str) -> None:
        """The last to come opens the door, and removes that of the meeting before."""
        with self._reachable():
            if self._store.add(f"came {self._meeting}", 1) == len(self._ranks):
                self._store.set(f"door {self._meeting}", "open")
                self._clear(self._meeting - 1)
            end = time.monotonic() + self.limit.total_seconds()
            while not self._is_open(min(self.limit, _SLICE)):
                # Where this is a thread, the program may be over meanwhile, and would wait for it.
                if time.monotonic() >= end or not main_thread().is_alive():
                    raise self._missing(what)

    def _is_open(self, limit: timedelta) -> bool:
        """Whether all have come, at the latest after a while."""
        try:
            self._store.wait([f"door {self._meeting}"], limit)
        except dist.DistNetworkError:
            raise
        except RuntimeError:  # a DistStoreError, but of a file store
            return False
        return True

    def _clear(self, meeting: int) -> None:
        for key in (f"came {meeting}", f"door {meeting}"):
            self._store.delete_key(key)

    def _where(self, member: int) -> tuple[int, str]:
        """The last meeting that a process has told of, and whether it came to it, left it or failed in it."""
        key = f"rank {member}"
        meeting, _, where = self._store.get(key).decode().partition(" ") if self._store.check([key]) else ("0", "", "")
        return int(meeting), where

    def _missing(self, what: str) -> LostRankError:
        seen = {member: self._where(member) for member in range(len(self._ranks))}
        absent = [member for member, (meeting, _) in seen.items() if meeting < self._meeting]
        names = ", ".join(f"rank {self._ranks[member]} ({_last(*seen[member])})" for member in absent)
        return LostRankError(
            f"{names or 'a rank'} did not come to {what} within {self.limit.total_seconds():g} s of rank {self._ranks[self._me]}: it is "
            "dead, stuck or much slower; start again from the last checkpoint, or allow more time with time_limit=",
            [self._ranks[member] for member in absent],
        )

    def _failed(self, what: str, error: Exception) -> LostRankError:
        """Tell the others, and give them a while to tell: who says nothing is lost."""
        self._tell("failed")
        end = time.monotonic() + min(self.limit, _GRACE).total_seconds()
        silent = [member for member in range(len(self._ranks)) if not self._has_ended(member)]
        while silent and time.monotonic() < end:
            time.sleep(0.02)
            silent = [member for member in silent if not self._has_ended(member)]
        lost = [self._ranks[member] for member in silent]
        who = f"{_named(lost)} left" if lost else "something failed"
        return LostRankError(
            f"{who} in the middle of {what}: the weights here may be half averaged; start again from the last checkpoint ({error})",
            lost,
        )

    def _has_ended(self, member: int) -> bool:
        """Whether a process has told of failing in this meeting, or of leaving it."""
        meeting, where = self._where(member)
        return meeting > self._meeting or (meeting == self._meeting and where != "came")


def _named(ranks: list[int]) -> str:
    return ", ".join(f"rank {rank}" for rank in ranks)


def _last(meeting: int, where: str) -> str:
    return f"last seen when it {where} meeting {meeting}" if meeting else "never seen"
