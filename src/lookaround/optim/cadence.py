"""Where in the nest of loops we are, in integers alone.

The papers' loops are nested: for each round, for k steps, for d branches. A training loop calls ``step()`` instead, so the place in the
nest is kept, and moved on from each step to what comes next.
"""

from dataclasses import dataclass


@dataclass(slots=True)
class Place:
    """A place in the nest.

    What comes after a turn is asked with `following`, and gone to with `turn_ends` or `round_ends` once it is there: whatever is raised in
    between, the place is still the one before.

    Attributes:
        round: rounds ended so far.
        step: steps that every branch has made in this round.
        branch: whose weights are in the model.
        taken: steps of this branch in its turn.
        most: steps of the branch with most of them in this pass, for steps may be skipped.
        skipped: where other processes hold branches too, a bit for each step of this round that nobody here has made.

    >>> place, two = Place(), range(2)
    >>> place.stepped(); place.following(two, k=1)
    1
    >>> place.turn_ends(two); place.stepped(); place.following(two, k=1) is None
    True
    """

    round: int = 0
    step: int = 0
    branch: int = 0
    taken: int = 0
    most: int = 0
    skipped: int = 0

    def counters(self) -> tuple[int, ...]:
        """All of it, to be written down: `Place(*counters)` is the same place."""
        return self.round, self.step, self.branch, self.taken, self.most, self.skipped

    def at_start(self, branches: range) -> bool:
        """Whether nothing has been done in this round."""
        return not (self.step or self.taken or self.most) and self.branch == branches.start

    def stepped(self) -> None:
        """One more step of the branch in its turn."""
        self.taken = taken = self.taken + 1
        if self.most < taken:
            self.most = taken

    def following(self, branches: range, k: int) -> int | None:
        """Whose turn is next, in this pass or the next one; None where the round is over.

        A pass is over after the last branch, and counts as many steps as the branch with most has made in it: none, where all were
        skipped. A round is over when it has k of them.
        """
        if self.branch + 1 < branches.stop:
            return self.branch + 1
        return branches.start if self.step + self.most < k else None

    def turn_ends(self, branches: range, missed: int = 0) -> None:
        """It is the next branch's turn.

        Args:
            branches: here.
            missed: at the end of a round, of its k steps those that nobody has made anywhere: so many are still to be made.
        """
        self.taken = 0
        if self.branch + 1 < branches.stop:
            self.branch += 1
            return
        self.branch, self.step, self.most = branches.start, self.step + self.most - missed, 0
        if missed:
            self.skipped = 0

    def round_ends(self, branches: range, *, counts: bool = True) -> None:
        """It is the first branch's turn in a new round; ``counts`` says whether the old one does."""
        self.round += counts
        self.branch, self.step, self.taken, self.most, self.skipped = branches.start, 0, 0, 0, 0

    def pass_ends_among_others(self, made: int, minibatches: int) -> None:
        """The end of a pass, or of several minibatches taken together, where other processes hold branches too.

        A step that nobody here has made (a gradient that was not finite, and a scaler that skipped it) may have been made elsewhere. So it
        counts, as the turn it was, and all processes come to the average after as many minibatches. What none of them has made is found
        out there, and made up for: `turn_ends` with ``missed``.

        Args:
            made: a bit for each minibatch that someone here has stepped with.
            minibatches: how many.

        >>> place = Place(step=3)
        >>> place.pass_ends_among_others(made=0b01, minibatches=2); place.skipped == 0b10 << 3
        True
        """
        self.most = minibatches
        self.skipped |= (~made & (1 << minibatches) - 1) << self.step
