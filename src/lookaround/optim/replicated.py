"""Rounds on replica groups that come and go: an average that fails is put back and taken again, and whoever returns takes a peer's state.

Everything else is as in `Rounds`. A process comes to a meeting (the start, the average that ends a round, a restart), and may find there
that the others are ahead of it. Then it has a peer's state by now, and does what that peer is about to do: nothing of its own is in the
mean, and it leaves the meeting with the weights of all others, at their place in the nest of loops.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol

from lookaround.errors import NotCommittedError
from lookaround.optim.average import Rows
from lookaround.optim.before import Before
from lookaround.optim.rounds import Rounds

Kind = Literal["start", "average", "restart"]
State = dict[str, Any]


class Replicas(Rows, Protocol):
    """Rows that may be lost, and come back (`lookaround.distributed.Replicas`)."""

    kind: Kind
    joined: bool
    healing: bool

    def offer(self, give: Callable[[], State], take: Callable[[State], int]) -> None:
        """Give and take the state of a branch where a process heals; ``take`` returns the branch's number."""

    def come(self, kind: Kind, what: str) -> bool:
        """Wait for all who are alive; whether this process has a peer's state now, and does what that one is at."""

    def again(self, error: NotCommittedError) -> None:
        """After a meeting that was not committed: say so; raise where it is too often."""

    def settle(self, round_number: int) -> None:
        """A round begins: who is there holds which branch."""


@dataclass
class Replicated(Rounds):
    """Rounds of one branch here, and others on replica groups that come and go."""

    replicas: Replicas = field(kw_only=True)

    def take_start(self) -> None:
        """Before the first step: come together, or take the state of those who are under way."""
        if not self.replicas.joined:
            self._meet("start", "the start", self._come_together)
        super().take_start()

    def before_step(self) -> None:
        """See `Rounds.before_step`. A gradient of before the process has joined would be of other weights."""
        if self.walk is None:
            raise ValueError(
                "step() was called outside of a loop over around(): with replicas= every forward pass has to be in one, as the weights may "
                "be replaced by a peer's where it begins: for branch in optimizer.around(): …"
            )
        super().before_step()

    def end_round(self, skipped: int = 0) -> int:
        """See `Rounds.end_round`."""
        return self._meet("average", f"the average of round {self.place.round}", partial(super().end_round, skipped))

    def restart(self) -> None:
        """See `Rounds.restart`."""
        self._meet("restart", "a restart", self._restarted)

    def _meet(self, kind: Kind, what: str, act: Callable[[], int]) -> int:
        """Do something with all who are there, as often as it takes. A process that finds the others ahead does what they do.

        Returns:
            How many steps of the round are still to be made, as none of them has made them.
        """
        while True:
            healing = self.replicas.come(kind, what)
            before = Before(self)
            try:
                missed = self._as_the_others() if healing else act()
            except NotCommittedError as error:
                before.put_back()
                self.replicas.again(error)
                continue
            if not missed:
                self._begin_as_another()
            return 0 if healing else missed

    def _begin_as_another(self) -> None:
        """A new round: the branch that is here is the one whose turn it is."""
        self.replicas.settle(self.place.round)
        branches = self.branches
        branches.local = self.replicas.local
        branches.current = branches.local.start
        self.place.branch = branches.current

    def _come_together(self) -> int:
        self.branches.follow()
        with self.replicas.meeting("the start"):
            self.replicas.agree(self.place.round, self.branches.weights.live, [True])
        return 0

    def _restarted(self) -> int:
        super().restart()
        return 0

    def _as_the_others(self) -> int:
        """What the peer is about to do whose state this process has."""
        if self.replicas.kind == "start":
            return self._come_together()
        if self.replicas.kind == "restart":
            return self._restarted()
        missed = super().end_round()
        if missed:
            self.place.turn_ends(self.branches.local, missed)
        self.end_block()
        return missed
