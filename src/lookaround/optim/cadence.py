"""Where in the nest of loops we are, in integers alone.

The papers' loops are nested: for each round, for k steps, for d branches. A training loop calls ``step()`` instead, so the place in the
nest is kept, and moved on from each step to what comes next.
"""

from enum import Enum, auto
from typing import NamedTuple

# A named tuple without the checks of its arguments: one is made at every step.
_new = tuple.__new__


class Move(Enum):
    """What comes after a branch's turn."""

    NEXT_BRANCH = auto()
    AVERAGE = auto()


class Place(NamedTuple):
    """A place in the nest.

    Attributes:
        round: rounds ended so far.
        step: steps that every branch has made in this round.
        branch: whose weights are in the model.
        taken: steps of this branch in its turn.
        most: steps of the branch with most of them in this pass, for steps may be skipped.
    """

    round: int = 0
    step: int = 0
    branch: int = 0
    taken: int = 0
    most: int = 0

    def at_start(self, branches: range) -> bool:
        """Whether nothing has been done in this round."""
        return not (self.step or self.taken or self.most) and self.branch == branches.start

    def stepped(self) -> "Place":
        """After one more step of the branch in its turn."""
        round_, step, branch, taken, most = self
        return _new(Place, (round_, step, branch, taken + 1, most if most > taken else taken + 1))


def turn_ends(place: Place, branches: range, k: int) -> tuple[Move, Place]:
    """What comes after a branch's turn, and where that is: the next branch, in this pass or the next one, or the average.

    A pass is over after the last branch, and counts as many steps as the branch with most has made in it: none, where all were
    skipped. A round is over when it has k of them.

    >>> turn_ends(Place(branch=0, taken=1, most=1), range(2), k=1)[0]
    <Move.NEXT_BRANCH: 1>
    >>> turn_ends(Place(branch=1, taken=1, most=1), range(2), k=1)[0]
    <Move.AVERAGE: 2>
    """
    round_, step, branch, _, most = place
    if branch + 1 < branches.stop:
        return Move.NEXT_BRANCH, _new(Place, (round_, step, branch + 1, 0, most))
    after = _new(Place, (round_, step + most, branches.start, 0, 0))
    return (Move.AVERAGE if step + most >= k else Move.NEXT_BRANCH), after


def round_ends(place: Place, branches: range) -> Place:
    """The start of the next round."""
    return Place(round=place.round + 1, branch=branches.start)
