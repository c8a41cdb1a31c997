"""What all branches have in common after an average: weights, statistics, slow weights inside, momentum."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lookaround.optim import momentum
from lookaround.optim.average import Alone, Rows, settle, towards
from lookaround.optim.branches import Branches
from lookaround.optim.checks import NotFiniteError
from lookaround.optim.kept import SLOW, waiting
from lookaround.optim.moving import ByParam, Moving, by_group
from lookaround.optim.outer import Outer
from lookaround.optim.taking_part import TakingPart, TensorsOf
from lookaround.tensors import all_finite, clone, copy_

_LEFT_OUT = "has weights that are infinite or NaN: it is left out of the average of round {} and restarts from it"

Lists = tuple[list[list[Tensor]], float]


class Common:
    """The average step over everything that is weights, and a new start from what is in the model.

    Args:
        branches: here.
        rows: where all branches are.
        inner_state: what becomes of momentum.
        outer: moves φ; None for α.
        careful: leave branches out that are not finite.

    Attributes:
        own: further tensors of ours by parameter: slow momentum, slow weights of those inside.
    """

    def __init__(
        self,
        branches: Branches,
        rows: Rows,
        inner_state: momentum.Mode,
        outer: Outer | None,
        careful: bool,
    ) -> None:
        self._branches, self._rows, self._mode = branches, rows, inner_state
        self._moving, self._taking_part = Moving(branches, rows, outer), TakingPart(branches, rows, careful)
        self.outer = outer
        self.own: dict[str, dict[Tensor, Any]] = {}
        # All branches are here, and nothing but weights: nobody to ask, nothing to settle beside them.
        bare = (
            isinstance(rows, Alone)
            and inner_state == "maintain"
            and branches.model is None
            and not branches.hold_rounds
        )
        self._bare, self._careful = bare and (careful or rows.branches == 1), careful

    @property
    def branches(self) -> int:
        """How many there are, wherever they are."""
        return self._rows.branches

    @property
    def moves_momentum(self) -> bool:
        """Whether an average touches more of the inner optimizers than those whose weights are not finite."""
        return self._mode != "maintain"

    @property
    def displaced(self) -> bool:
        """Whether weights travel as their way from φ, so that φ is kept."""
        return not self._rows.exact

    def average(self, alphas: Sequence[float], round_number: int, skipped: int, k: int) -> int:
        """The common start of the next round, everywhere; or nothing, and how many of its k steps nobody has made anywhere.

        ``skipped`` has a bit for each that nobody here has made.
        """
        if self._bare and not skipped and self._moving.at_once(alphas, careful=self._careful):
            return 0
        with self._rows.meeting(f"the average of round {round_number}"):
            part, missed = self._taking_part.at_average(round_number, skipped, k)
            if missed:
                return missed
            self._moving.move(alphas, part, self.lost())
            if self._branches.hold_rounds or self._mode != "maintain":
                self._settle([*self._nested_slow(alphas), *self._momentum(alphas, round_number == 0)], part)
            if self._branches.counters.live:
                self._copy_counters()
            if not all(part):
                self._taking_part.rejoin(part, _LEFT_OUT.format(round_number))
        return 0

    def show(self, alphas: Sequence[float], round_number: int) -> None:
        """What `average` would put into the model, into the model alone."""
        here = self._branches.current - self._branches.local.start
        with self._rows.meeting(f"the average shown in round {round_number}"):
            part, _ = self._taking_part.at_average(round_number)
            self._moving.move(alphas, part, self.lost(), here)

    @torch.no_grad()
    def restart(self, alphas: Sequence[float], *, unfinished: bool) -> None:
        """Make the weights and buffers in the model the common start of everything that is weights; momentum goes as at an average."""
        if not all_finite(self._branches.params()):
            raise NotFiniteError(
                "the weights in the model are infinite or NaN: no round can start from them", "the new start"
            )
        with self._rows.meeting("a restart"):
            part = self._taking_part.at_restart()
            self._settle(self._momentum(alphas, False) if unfinished else [], part)
            self._overwrite()
            self._taking_part.rejoin(
                part, "has an inner state that is infinite or NaN: it takes another branch's at this restart"
            )

    @torch.no_grad()
    def _settle(self, each: Sequence[Lists], part: list[bool]) -> None:
        """Lists of all branches here, and φ, go to their mean over all branches."""
        count = len(self._branches.local)
        for lists, alpha in each:
            settle(self._rows.means(lists[:count], part, *lists[count:]), count, partial(towards, alpha))

    def well(self) -> list[bool]:
        """Of the branches here, those that are finite."""
        return self._taking_part.well()

    def landed(self, part: list[bool], round_number: int, newcomers: TensorsOf) -> None:
        """What an average brings besides, where branches went on while it was under way: momentum is reset, those left out rejoin.

        ``newcomers`` are a branch's weights that had no part in it.
        """
        if self._mode == "reset":
            self._momentum((), round_number == 0)
        if not all(part):
            with self._rows.meeting(f"the average of round {round_number}"):
                self._taking_part.rejoin(part, _LEFT_OUT.format(round_number), apart=True)
                self._taking_part.lend(part, newcomers)

    def lend(self, part: list[bool], round_number: int, newcomers: TensorsOf) -> None:
        """Of what `landed` does, that which an average shows."""
        if not all(part):
            with self._rows.meeting(f"the average of round {round_number}, shown"):
                self._taking_part.lend(part, newcomers)

    @torch.no_grad()
    def settle_buffers(self, round_number: int, *, here: bool = False) -> None:
        """Bring buffers alone to their mean, everywhere; or (``here``) running statistics in the model alone."""
        branches = self._branches
        if not (branches.statistics.live or branches.counters.live):
            return
        with self._rows.meeting(f"the buffers of round {round_number}"):
            part, _ = self._taking_part.at_average(round_number)
            self._moving.move_statistics(1.0, part, branches.current - branches.local.start if here else None)
            if branches.counters.live and not here:
                self._copy_counters()

    def lost(self) -> ByParam | None:
        """What this row has lost on the wire, by parameter in the order of the weights kept; None where nothing is lost."""
        if self._rows.exact:
            return None
        slow = self._branches.weights.values(SLOW)
        lost: dict[Any, Any] = self.own.setdefault(f"lost.{self._rows.local.start}", {})
        lost |= {p: torch.zeros_like(phi) for p, phi in slow.items() if p not in lost}
        return {p: lost[p] for p in slow}  # type: ignore[misc]

    def _copy_counters(self) -> None:
        """Counters and the like are those of the last branch: the one in the model where a round ends by itself."""
        counters, last = self._branches.counters, self._rows.branches - 1
        if waiting(last) in counters:
            counters.restore(waiting(last))
        self._rows.copy_(counters.live, last)
        for branch in self._branches.others():
            counters.store(waiting(branch))

    def _nested_slow(self, alphas: Sequence[float]) -> Iterator[Lists]:
        """The slow weights of a wrapper inside this one are weights too: a branch that restarts takes its φ along."""
        branches = self._branches
        inside = [branches.inside(b) for b in branches.local]
        for name, rounds in branches.inside(branches.current).items():
            if SLOW in rounds.branches.weights:
                lists = [of[name].branches.weights.values(SLOW) for of in inside]
                ours = rounds.branches.weights.values(SLOW)
                slow = self._slow_of(f"slow.{name}.slow", ours, branches.weights.values(SLOW))
                yield from by_group(branches.optimizer.param_groups, lists, slow, alphas)

    def _slow_of(self, label: str, ours: Mapping[Any, Tensor], start: Mapping[Any, Tensor]) -> ByParam:
        """φ of something kept by parameter, which begins at ``start``; nothing where no φ is kept."""
        if self.outer is not None or SLOW not in self._branches.weights:
            return {}
        slow = self.own.setdefault(label, {})
        for param in [p for p in ours if p in start and p not in slow]:
            slow[param] = clone([start[param]])[0]
        return slow

    def drop_slow(self) -> None:
        """Keep no φ of anything."""
        self._branches.drop_slow()
        for label in [label for label in self.own if label.startswith("slow.")]:
            del self.own[label]

    def prepare(self) -> None:
        """Create all of φ with the first step: a checkpoint's keys do not change after it."""
        list(self._nested_slow([1.0] * len(self._branches.optimizer.param_groups)))
        if self._mode == "interpolate":
            for name, ours in momentum.moments(self._branches.entries(self._branches.current)).items():
                self._slow_momentum(name, ours)

    def _momentum(self, alphas: Sequence[float], first: bool) -> list[Lists]:
        """Reset momentum, or list it for interpolation between its value at the round's start (zero at first) and the mean."""
        if self._mode == "maintain":
            return []
        entries = [self._branches.entries(b) for b in self._branches.local]
        if self._mode == "reset":
            found_any = [momentum.reset(of) for of in entries]
            self._warn_without(any(found_any), first)
            return []
        found = [momentum.moments(of) for of in entries]
        # One whose first step was skipped has none yet, and then no row sends its own.
        everywhere, _ = self._rows.agree(0, [], [*map(bool, found)])
        self._warn_without(any(everywhere), first)
        if not all(everywhere):
            return []
        ours = found[self._branches.current - self._branches.local.start]
        names = [(name, self._slow_momentum(name, of)) for name, of in ours.items()]
        each = [([of.get(name, {}) for of in found], slow) for name, slow in names]
        groups = self._branches.optimizer.param_groups
        return [pair for lists, slow in each for pair in by_group(groups, lists, slow, alphas)]

    def _slow_momentum(self, name: str, ours: ByParam) -> ByParam:
        start = {p: torch.zeros_like(clone([m], wide=True)[0]) for p, m in ours.items()}
        return self._slow_of(f"slow.{name}", ours, start)

    def _warn_without(self, found: bool, first: bool) -> None:
        if not found and first:
            momentum.warn_without_momentum(self._mode, self._branches.optimizer)

    def _overwrite(self) -> None:
        """Put the model's values wherever this wrapper, or one inside it, keeps some."""
        self._branches.follow()
        for kept in self._branches.kept:
            for name in kept.names:
                kept.store(name)
        nested = [rounds for b in self._branches.local for rounds in self._branches.inside(b).values()]
        inside = [kept for rounds in nested for kept in rounds.branches.kept]
        pairs = [pair for kept in inside for name in kept.names for pair in kept.pairs(name)]
        pairs += [(p, phi) for label, of in self.own.items() if label.endswith(".slow") for p, phi in of.items()]
        copy_([phi for _, phi in pairs], [live for live, _ in pairs])
