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
        skipped: where other processes hold branches too, a bit for each step of this round that nobody here has made.
    """

    round: int = 0
    step: int = 0
    branch: int = 0
    taken: int = 0
    most: int = 0
    skipped: int = 0

    def at_start(self, branches: range) -> bool:
        """Whether nothing has been done in this round."""
        return not (self.step or self.taken or self.most) and self.branch == branches.start

    def stepped(self) -> "Place":
        """After one more step of the branch in its turn."""
        round_, step, branch, taken, most, skipped = self
        return _new(Place, (round_, step, branch, taken + 1, most if most > taken else taken + 1, skipped))

    def made(self, most: int) -> "Place":
        """After a turn over several minibatches, with so many of which some branch has stepped."""
        return _new(Place, (self.round, self.step, self.branch, self.taken, most, self.skipped))


def counted(place: Place, branches: range, k: int) -> Place | None:
    """After a turn of one step; None where there may be more to do than to count and change branches: in the first round, at an end.

    >>> counted(Place(round=1, step=3), range(1), k=5), counted(Place(round=1, step=4), range(1), k=5)
    (Place(round=1, step=4, branch=0, taken=0, most=0, skipped=0), None)
    """
    round_, step, branch, _, most, skipped = place
    if not round_:
        return None
    if branch + 1 < branches.stop:
        return _new(Place, (round_, step, branch + 1, 0, most or 1, skipped))
    step += most or 1
    return _new(Place, (round_, step, branches.start, 0, 0, skipped)) if step < k else None


def turn_ends(place: Place, branches: range, k: int) -> tuple[Move, Place]:
    """What comes after a branch's turn, and where that is: the next branch, in this pass or the next one, or the average.

    A pass is over after the last branch, and counts as many steps as the branch with most has made in it: none, where all were
    skipped. A round is over when it has k of them.

    >>> turn_ends(Place(branch=0, taken=1, most=1), range(2), k=1)[0]
    <Move.NEXT_BRANCH: 1>
    >>> turn_ends(Place(branch=1, taken=1, most=1), range(2), k=1)[0]
    <Move.AVERAGE: 2>
    """
    round_, step, branch, _, most, skipped = place
    if branch + 1 < branches.stop:
        return Move.NEXT_BRANCH, _new(Place, (round_, step, branch + 1, 0, most, skipped))
    after = _new(Place, (round_, step + most, branches.start, 0, 0, skipped))
    return (Move.AVERAGE if step + most >= k else Move.NEXT_BRANCH), after


def among_others(place: Place, made: int, minibatches: int) -> Place:
    """The place at the end of a pass, or of several minibatches taken together, where other processes hold branches too.

    A step that nobody here has made (a gradient that was not finite, and a scaler that skipped it) may have been made elsewhere. So it
    counts, as the turn it was, and all processes come to the average after as many minibatches. What none of them has made is
    found out there, and made up for: `made_up`.

    Args:
        place: at the end of the last turn.
        made: a bit for each minibatch that someone here has stepped with.
        minibatches: how many.

    >>> among_others(Place(step=3), made=0b01, minibatches=2).skipped == 0b10 << 3
    True
    """
    idle = ~made & (1 << minibatches) - 1
    return place._replace(most=minibatches, skipped=place.skipped | idle << place.step)


def made_up(place: Place, missed: int) -> Place:
    """Where a round is after k steps of which some were made by nobody: so many of them are still to be made."""
    return place._replace(step=place.step - missed, skipped=0)


def round_ends(place: Place, branches: range) -> Place:
    """The start of the next round."""
    return _new(Place, (place.round + 1, 0, branches.start, 0, 0, 0))
