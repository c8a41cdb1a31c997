"""Who takes part in an average: branches that are finite. Those that are not come back from it with another one's inner optimizer."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from lookaround.optim.average import Rows
from lookaround.optim.branches import Branches
from lookaround.optim.checks import NotFiniteError
from lookaround.optim.kept import Kept, waiting
from lookaround.packed import finite_sets
from lookaround.tensors import all_finite, clone, copy_

TensorsOf = Callable[[int], list[Tensor]]


class TakingPart:
    """Decides it at every average, on the host: a branch left out takes a copy of a healthy one's inner optimizer before its next step.

    So where branches are watched over, an average waits for the device once. What would avoid it, a mean masked on the device and
    the branches mended when the answer has arrived, would let a whole inner optimizer step with state that is not finite meanwhile.

    Args:
        branches: here.
        rows: where all branches are.
        careful: leave branches out that are not finite; otherwise all take part, unseen.
    """

    def __init__(self, branches: Branches, rows: Rows, careful: bool) -> None:
        self._branches, self._rows, self._careful = branches, rows, careful

    def at_average(self, round_number: int, skipped: int = 0, k: int = 0) -> tuple[list[bool], int]:
        """Of all branches, those with finite weights and statistics; and how many of the round's k steps nobody has made anywhere.

        ``skipped`` has a bit for each that nobody here has made.
        """
        everywhere, missed = self._rows.agree(round_number, self._branches.weights.live, self.well(), skipped, k)
        require_any(everywhere)
        return everywhere, missed

    def well(self) -> list[bool]:
        """Of the branches here, those with finite weights and statistics."""
        branches = self._branches
        well = [True] * len(branches.local)
        if self._careful:
            well, statistics = self._finite(branches.weights), self._finite(branches.statistics)
            if any(statistics):
                well = [a and b for a, b in zip(well, statistics, strict=True)]
        return well

    def _finite(self, kept: Kept) -> list[bool]:
        if not kept.live:
            return [True] * len(self._branches.local)
        others = self._branches.others()
        current, *waiting_ones = finite_sets(kept.layout, [kept.packed(waiting(b)) for b in others])
        found = dict(zip(others, waiting_ones, strict=True))
        return [found.get(b, current) for b in self._branches.local]

    def at_restart(self) -> list[bool]:
        """Those with a finite inner state, by which one that diverged is known after its weights were replaced."""
        branches = self._branches
        if not self._careful:
            return [True] * self._rows.branches
        entries = [branches.entries(b).values() for b in branches.local]
        well = [all_finite([t for e in of for t in e.values() if _is_floating(t)]) for of in entries]
        part, _ = self._rows.agree(0, branches.params(), well)
        if not any(part):
            raise NotFiniteError(
                f"the inner state of all {len(part)} branches is infinite or NaN: build a new optimizer to go on",
                "every branch",
            )
        return part

    def rejoin(self, part: list[bool], why: str, *, apart: bool = False) -> None:
        """Branches left out have the average's weights by now, and take a healthy branch's inner optimizer.

        With ``apart`` the others go on from weights and buffers of their own (see `lend`).
        """
        if all(part):
            return
        branches = self._branches
        left_out = [b for b, takes_part in enumerate(part) if not takes_part]
        for branch in left_out:
            warnings.warn(f"branch {branch} of {len(part)} {why}", RuntimeWarning, stacklevel=2)
        healthy = [b for b in branches.local if part[b]]
        if branches.current in left_out and healthy:
            branches.load(healthy[0], same_weights=not apart)
        for branch in left_out:
            if branch in branches.others():
                branches.restart(branch)
        if len(branches.local) < self._rows.branches:
            self._take(self._inner_tensors, part)

    def lend(self, part: list[bool], also: TensorsOf) -> None:
        """Branches left out take a healthy one's buffers, and what else it has of its own: where others go on from theirs."""
        if not all(part):
            self._take(lambda branch: [*self._statistics(branch), *also(branch)], part)

    def _take(self, tensors_of: TensorsOf, part: list[bool]) -> None:
        """What one process would give those left out, from whatever row: all have taken the same steps and keep the same."""
        branches, last = self._branches, len(part) - 1
        healthy = last if part[last] else part.index(True)
        theirs = clone(tensors_of(healthy if healthy in branches.local else branches.current))
        self._rows.copy_(theirs, healthy)
        for branch in [b for b in branches.local if not part[b]]:
            copy_(tensors_of(branch), theirs)

    def _statistics(self, branch: int) -> list[Tensor]:
        kept = self._branches.statistics
        return kept.live if branch == self._branches.current else list(kept.values(waiting(branch)).values())

    def _inner_tensors(self, branch: int) -> list[Tensor]:
        entries = self._branches.entries(branch).values()
        return [v for entry in entries for _, v in sorted(entry.items()) if isinstance(v, Tensor)]


def require_any(part: Sequence[bool]) -> None:
    """Raise NotFiniteError where no branch can take part."""
    if not any(part):
        raise NotFiniteError(
            f"the weights or buffers of all {len(part)} branches are infinite or NaN, there is nothing to average: "
            "lower the learning rate, clip gradients, or go back to a checkpoint",
            "every branch",
        )


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
