"""Replica groups that come and go: branches on processes of which some may die, and come back, while the others go on.

`torchft <https://meta-pytorch.org/torchft>`_ knows who is alive (its lighthouse), brings those together who are (a quorum), lets whoever is
behind take the state of one who is not (healing), and asks at the end whether all went well (a commit). An average is one such step:

1. **come**: a quorum. Who has missed averages, or is new, now has the state of a peer, and no part in this mean;
2. what `lookaround.distributed.Rows` does, among those who are there: the mean in the order of the replica groups, divided by their number;
3. **commit**, or everything that the average has written is put back, and it is taken again with those who are left.

Who holds which branch follows from who is there: of p replica groups the i-th holds branch (t p + i) mod d in round t. With p = d that is
branch i; with fewer the augmentations of those who are gone come to all others in turn, and each of the d is seen in p of d rounds.
"""

import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import reduce
from operator import and_
from secrets import randbits

import torch
from torch import Tensor

from lookaround.distributed.links import BrokenLinkError, Links
from lookaround.distributed.manager import (
    Kind,
    LostReplicasError,
    Manager,
    State,
    check_manager,
    check_same,
    listed,
    warn_of_lost,
)
from lookaround.distributed.rows import Block, exchanged, views_like, words
from lookaround.errors import NotCommittedError
from lookaround.tensors import Tensors, blocks, local

_KINDS: tuple[Kind, ...] = ("start", "average", "restart")
_PAUSE = 0.05


class Replicas:
    """The replica groups that d branches are shared out to, one each, as a process of one of them sees it.

    Args:
        manager: of torchft, as `join_replicas` makes it.
        branches: d, at least the replica groups that will be there at a time.
        time_limit: how long a quorum may take, and averages may fail one after the other.

    Attributes:
        local: the branch that this process holds in this round, as a range.
        kind: the meeting that this process has come to, or found the others at.
        joined: whether it is one of those who go on together.
        healing: whether its branch is a peer's, and no part of a mean.

    Raises:
        TypeError, ValueError: no torchft Manager, or one that heals beside the training.
    """

    exact = True

    def __init__(self, manager: Manager, branches: int, *, time_limit: timedelta = timedelta(minutes=10)) -> None:
        check_manager(manager)
        if time_limit <= timedelta(0):
            raise ValueError(f"time_limit has to be positive, got {time_limit}")
        self._manager, self._limit = manager, time_limit
        self.branches, self.local = branches, range(1)
        self.kind: Kind = "start"
        self.joined = self.healing = False
        self._came = False
        self._failing: tuple[int, float] = 0, 0.0
        self._lineage = self._next_lineage = 0
        self._expected = self._present = set(range(branches))
        self._holders: dict[int, int] = {}
        self._taking: list[bool] = []

    # -- state that a process takes from a peer ------------------------------------------------------------------------------

    def offer(self, give: Callable[[], State], take: Callable[[State], int]) -> None:
        """Give and take the state of a branch where a process heals; ``take`` returns the branch's number."""

        def given() -> State:
            mine = {"kind": self.kind, "lineage": self._lineage, "expected": sorted(self._expected)}
            return {"meeting": mine, "branch": give()}

        def taken(state: State) -> None:
            meeting = state["meeting"]
            self.kind, self._lineage, self._expected = meeting["kind"], meeting["lineage"], set(meeting["expected"])
            number = take(state["branch"])
            self.local, self.healing = range(number, number + 1), True

        self._manager.register_state_dict_fn("lookaround", taken, given)

    # -- meetings ------------------------------------------------------------------------------------------------------------

    def come(self, kind: Kind, what: str) -> bool:
        """Wait for all who are alive; whether this process has a peer's state now, and does what that one is at.

        Raises:
            LostReplicasError: too few came within the time limit; more came than there are branches.
        """
        if not self.healing:
            self.kind = kind
        manager = self._manager
        try:
            manager.start_quorum(timeout=self._limit)
        except (TimeoutError, RuntimeError) as error:
            raise LostReplicasError(
                f"no quorum for {what} within {self._limit.total_seconds():g} s: it takes {self._least()}, {self._seen()}; start those "
                f"that are missing (the lighthouse's address shows who is there), or allow more time with time_limit= ({error})"
            ) from error
        self._size, self._rank = manager.num_participants(), self._place()
        if manager.errored() is None:
            self._check_surplus()
        self._links = Links(manager._pg, self._size, self._rank, self._limit)
        self._came = True
        return self.healing

    def _place(self) -> int:
        rank = self._manager.participating_rank()
        if rank is None:
            raise ValueError(
                "the Manager has this replica group as a spare (WorldSizeMode.FIXED_WITH_SPARES), which has no branch: leave "
                "world_size_mode out, and start no more replica groups than branches"
            )
        return rank

    def _least(self) -> str:
        least = getattr(self._manager, "_min_replica_size", None)
        return (
            f"at least {least} replica groups (and the lighthouse's min_replicas)"
            if least
            else "the lighthouse's min_replicas"
        )

    def _seen(self) -> str:
        if not self.joined:
            return "and this one has met no other yet"
        return f"and branches {listed(self._expected)} were there last"

    def _check_surplus(self) -> None:
        if self._size > self.branches and self._rank >= self.branches:
            raise LostReplicasError(
                f"this is one of {self._size} replica groups for branches={self.branches}: a replica group holds one branch, so start at "
                f"most {self.branches} of them, or ask for more branches"
            )

    @contextmanager
    def meeting(self, what: str) -> Iterator[None]:
        """Be together with those who came; what is inside the context is committed in the end.

        Raises:
            NotCommittedError: it is not; what was written has to be put back.
            ValueError: a meeting that the others know nothing of.
        """
        if not self._came:
            raise ValueError(
                f"{what} needs all replica groups at the same place, and those that come and go meet at the ends of rounds alone: call "
                "average() first, which ends the round, or look at the average where a round has just ended"
            )
        self._came = False
        if self._manager.errored() is not None:
            self._vote(what)
        try:
            yield
        except BrokenLinkError as error:
            self._manager.report_error(error)
        self._vote(what)

    def _vote(self, what: str) -> None:
        if not self._manager.should_commit():
            raise NotCommittedError(f"{what} was not committed: {self._reason()}")
        self.joined, self._failing, self._lineage = True, (0, 0.0), self._next_lineage

    def _reason(self) -> str:
        if (error := self._manager.errored()) is not None:
            return str(getattr(error, "original_exception", error))
        if self._size < getattr(self._manager, "_min_replica_size", 0):
            return f"{self._size} replica groups came, it takes {self._least()}"
        return "another process of this replica group has failed in it"

    def again(self, error: NotCommittedError) -> None:
        """After a meeting that was not committed: say so, and wait a little.

        Raises:
            LostReplicasError: it has been so for as long as the time limit.
        """
        tries, since = self._failing
        since = since or time.monotonic()
        if time.monotonic() - since > self._limit.total_seconds():
            raise LostReplicasError(
                f"{tries + 1} times in {self._limit.total_seconds():g} s {error}: the weights here are those before it; see the logs of "
                "the others and of the lighthouse"
            ) from error
        warnings.warn(f"{error}; it is taken again (try {tries + 2})", RuntimeWarning, stacklevel=2)
        self._failing = tries + 1, since
        time.sleep(min(1.0, _PAUSE * 2**tries))

    def settle(self, round_number: int) -> None:
        """A round begins: who is there holds which branch."""
        numbers = [(round_number * self._size + i) % self.branches for i in range(self._size)]
        self.local = range(numbers[self._rank], numbers[self._rank] + 1)
        self._expected, self.healing = set(numbers), False

    # -- as `Rows` -----------------------------------------------------------------------------------------------------------

    def agree(
        self, round_number: int, tensors: Tensors, well: Sequence[bool], skipped: int = 0, k: int = 0
    ) -> tuple[list[bool], int]:
        """Of all d branches, which are well as far as they are there; and that all are about to average the same thing.

        Raises:
            ValueError: some are about to do something else, or hold other tensors.
            LostReplicasError: this process has committed an average that the others have not.
        """
        shapes = zlib.crc32(repr([(tuple(local(t).shape), t.dtype) for t in tensors]).encode())
        same = [_KINDS.index(self.kind), round_number, shapes, self.branches]
        if self.healing:
            skipped = (1 << k) - 1
        own = [self._lineage, not self.healing, self.local.start, well[0], randbits(32)]
        device = tensors[0].device if tensors else torch.device("cpu")
        said = self._links.share([*same, *map(int, own), *words(skipped, k)], device)
        self._send_back_a_beginner({row[0] for row in said})
        check_same([row[: len(same)] for row in said])
        lineages, taking, numbers, healthy, nonces = zip(
            *(row[len(same) : len(same) + len(own)] for row in said), strict=True
        )
        self._check_lineage([one for one, takes in zip(lineages, taking, strict=True) if takes])
        self._next_lineage = zlib.crc32(repr((lineages, nonces)).encode())
        self._note_who_is_there(numbers, taking, healthy, round_number)
        by_all = (reduce(and_, of) for of in zip(*(row[len(same) + len(own) :] for row in said), strict=True))
        return self._well(), sum(map(int.bit_count, by_all))

    def _well(self) -> list[bool]:
        """Of all branches, which are well; those that are not there are nobody's trouble, as long as anyone is well."""
        if not any(self._taking):
            return [False] * self.branches
        return [b not in self._holders or self._taking[self._holders[b]] for b in range(self.branches)]

    def _send_back_a_beginner(self, kinds: set[int]) -> None:
        """Who begins from a checkpoint as new as the others' last average is not behind them for torchft, and is for us: it has to heal."""
        start = _KINDS.index("start")
        if start in kinds and len(kinds) > 1:
            if self.kind == "start":
                self._manager.load_state_dict({"step": 0, "batches_committed": 0})
            raise BrokenLinkError("a replica group begins where others end a round: it takes their state first")

    def _check_lineage(self, lineages: list[int]) -> None:
        usual = max(lineages, key=lineages.count)
        if not self.healing and self._lineage != usual:
            raise LostReplicasError(
                "this replica group has committed an average that the others have not, and its weights are others than theirs: start it "
                "again, and it takes theirs; the lighthouse's join_timeout_ms has to be longer than a round, or this will happen again"
            )

    def _note_who_is_there(
        self, numbers: Sequence[int], taking: Sequence[int], healthy: Sequence[int], round_number: int
    ) -> None:
        """Who holds which branch and takes part; a warning for branches that are lost."""
        self._holders = {number: row for row, number in enumerate(numbers) if taking[row]}
        self._taking = [bool(takes and well) for takes, well in zip(taking, healthy, strict=True)]
        if self.kind == "start":
            missing = set(range(self._size, self.branches))
        else:
            missing = self._expected - self._holders.keys()
            self._expected = set(self._holders)
        if missing and not self.healing:
            warn_of_lost(missing, set(self._holders), self.kind, round_number, self._size)

    @torch.no_grad()
    def means(
        self,
        branches: Sequence[Tensors],
        taking_part: Sequence[bool],
        *beside: Tensors,
        start: Tensors | None = None,
        lost: Tensors | None = None,
    ) -> Iterator[tuple[list[Tensor], Block]]:
        """See `lookaround.distributed.Rows.means`: the mean over those who are there and take part."""
        weights = [float(takes) for takes in self._taking]
        mine = [self._taking[self._rank]]
        for views, block, _ in exchanged(self._links, [*branches, *beside], mine, weights):
            yield views, block

    @torch.no_grad()
    def copy_(self, tensors: Tensors, branch: int) -> None:
        """Write what the holder of ``branch`` has into ``tensors``; another one's that takes part, where it is not there."""
        row = self._holders.get(branch, -1)
        source = row if row >= 0 and self._taking[row] else self._taking.index(True)
        for (block,) in blocks(tensors):
            packed = torch.cat([t.reshape(-1) for t in block])
            self._links.broadcast(packed.view(torch.uint8), source)
            if self._rank != source:
                torch._foreach_copy_(block, views_like(packed, block))
