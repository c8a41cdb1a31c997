"""What all branches have in common after an average: weights, statistics, slow weights inside, momentum. Branches that diverged rejoin."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from lookaround.optim import momentum
from lookaround.optim.average import Alone, Means, Rows, Towards, difference, packed_means, settle
from lookaround.optim.branches import Branches
from lookaround.optim.checks import NotFiniteError
from lookaround.optim.kept import SLOW, Kept, waiting
from lookaround.optim.outer import Outer
from lookaround.packed import Packed, finite_sets
from lookaround.tensors import all_finite, clone, copy_, wide_dtype

ByParam = dict[Tensor, Tensor]
Nested = Callable[[int], Mapping[str, tuple[Kept, ...]]]

# The gradient of an outer optimizer, where the weights' own memory has too few bits for it.
_GRADIENT = "slow gradient"


class Common:
    """The average step over everything that is weights, and a new start from what is in the model.

    Args:
        branches: here.
        rows: where all branches are.
        inner_state: what becomes of momentum.
        outer: moves φ; None for α.
        nested: the sets of the wrappers inside, by their names, as a branch has them.
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
        nested: Nested,
        careful: bool,
    ) -> None:
        self._branches, self._rows = branches, rows
        self._mode, self._nested, self._careful = inner_state, nested, careful
        self.outer = outer
        self.own: dict[str, dict[Tensor, Any]] = {}

    @property
    def displaced(self) -> bool:
        """Whether weights travel as their way from φ, so that φ is kept."""
        return not self._rows.exact

    def average(self, alphas: Sequence[float], round_number: int) -> None:
        """The common start of the next round, everywhere."""
        with self._rows.meeting(f"the average of round {round_number}"):
            self._average(alphas, round_number)

    def _average(self, alphas: Sequence[float], round_number: int) -> None:
        part = self._taking_part(round_number)
        self._move(alphas, part, None)
        for lists, alpha in [*self._nested_slow(alphas), *self._momentum(alphas, round_number == 0)]:
            settle(
                self._rows.means(lists[: len(self._branches.local)], part, *lists[len(self._branches.local) :]),
                len(self._branches.local),
                Towards(alpha),
            )
        self._copy_counters()
        self._rejoin(
            part,
            f"has weights that are infinite or NaN: it is left out of the average of round {round_number} and restarts from it",
        )

    def show(self, alphas: Sequence[float], round_number: int) -> None:
        """What `average` would put into the model, into the model alone."""
        with self._rows.meeting(f"the average shown in round {round_number}"):
            self._move(alphas, self._taking_part(round_number), self._branches.current - self._branches.local.start)

    def _taking_part(self, round_number: int) -> list[bool]:
        """Who of all branches takes part in an average: those with finite weights and statistics."""
        branches = self._branches
        well = [True] * len(branches.local)
        if self._careful:
            well, statistics = self._finite(branches.weights), self._finite(branches.statistics)
            if any(statistics):
                well = [a and b for a, b in zip(well, statistics, strict=True)]
        everywhere = self._rows.agree(round_number, branches.weights.live, well)
        if not any(everywhere):
            raise NotFiniteError(
                f"the weights or buffers of all {len(everywhere)} branches are infinite or NaN, there is nothing to average: "
                "lower the learning rate, clip gradients, or go back to a checkpoint",
                "every branch",
            )
        return everywhere

    def _finite(self, kept: Kept) -> list[bool]:
        if not kept.live:
            return [True] * len(self._branches.local)
        current, *waiting_ones = finite_sets(kept.layout, [kept.packed(waiting(b)) for b in self._branches.others()])
        others = dict(zip(self._branches.others(), waiting_ones, strict=True))
        return [others.get(b, current) for b in self._branches.local]

    def _move(self, alphas: Sequence[float], part: list[bool], only: int | None) -> None:
        branches, count = self._branches, len(self._branches.local)
        if not branches.weights.live:
            return
        if self.outer is not None:
            self._outer_step(self.outer, part, only)
        elif len(set(alphas)) > 1 and SLOW in branches.weights:
            for means, alpha in self._means_by_group(part, alphas, shown=only is not None):
                settle(means, count, Towards(alpha), only)
        else:
            settle(self._means(branches.weights, part, only, shown=only is not None), count, Towards(alphas[0]), only)
        settle(
            self._means(branches.statistics, part, only, shown=only is not None),
            count,
            Towards(1.0 if self.outer else alphas[0]),
            only,
        )

    def _means(self, kept: Kept, part: list[bool], only: int | None, *, shown: bool) -> Means:
        """The mean over all branches of what is kept for each, beside φ if there is one."""
        branches = self._branches
        slow = [kept.packed(SLOW)] if SLOW in kept else []
        if not isinstance(self._rows, Alone):
            return self._over_rows(self._lists(kept), part, kept, slow, shown)
        if len(part) == 1 and not slow:
            return iter(())
        sets: list[Packed | None] = [None if b == branches.current else kept.packed(waiting(b)) for b in branches.local]
        return packed_means(kept.layout, sets, part, *slow, in_place=only is None or part.index(True) == only)

    def _means_by_group(
        self, part: list[bool], alphas: Sequence[float], *, shown: bool
    ) -> Iterator[tuple[Means, float]]:
        """The mean over all branches of the weights of each group, beside φ, and the group's α."""
        weights, count = self._branches.weights, len(self._branches.local)
        lost = [] if self._rows.exact else [self._lost()]
        for lists, alpha in self._by_group([*self._lists(weights), *lost], weights.values(SLOW), alphas):
            slow, owed = lists[-1], lists[count] if lost else None
            if owed is not None and shown:
                owed = clone(owed)
            yield self._rows.means(lists[:count], part, slow, start=slow, lost=owed), alpha

    def _over_rows(
        self,
        lists: list[dict[Any, Tensor]],
        part: list[bool],
        kept: Kept,
        beside: Sequence[Sequence[Tensor]],
        shown: bool,
    ) -> Means:
        """The mean over rows of processes. A wire that loses something is for weights alone, and comes back to it the next time."""
        values = [list(of.values()) for of in lists]
        if self._rows.exact or kept is not self._branches.weights:
            return self._rows.means(values, part, *beside)
        lost = list(self._lost().values())
        return self._rows.means(values, part, *beside, start=kept.packed(SLOW), lost=clone(lost) if shown else lost)

    def _lost(self) -> dict[Any, Tensor]:
        """What this row has lost on the wire, by parameter in the order of the weights kept."""
        slow = self._branches.weights.values(SLOW)
        lost: dict[Any, Any] = self.own.setdefault(f"lost.{self._rows.local.start}", {})
        lost |= {p: torch.zeros_like(phi) for p, phi in slow.items() if p not in lost}
        return {p: lost[p] for p in slow}

    def _lists(self, kept: Kept) -> list[dict[Any, Tensor]]:
        """Of each branch here, what is kept for it, by key."""
        live = dict(zip(kept.keys, kept.live, strict=True))
        return [live if b == self._branches.current else kept.values(waiting(b)) for b in self._branches.local]

    def _by_group(
        self, lists: Sequence[Mapping[Any, Tensor]], slow: Mapping[Any, Tensor], alphas: Sequence[float]
    ) -> Iterator[tuple[list[list[Tensor]], float]]:
        """Parallel lists of the parameters of each group that all branches have, φ last if there is one, and the group's α."""
        for group, alpha in zip(self._branches.groups, alphas, strict=True):
            at = [p for p in group["params"] if all(p in of for of in lists)]
            if at:
                yield [[of[p] for p in at] for of in (*lists, *([slow] if slow else []))], alpha

    @torch.no_grad()
    def _outer_step(self, outer: Outer, part: list[bool], only: int | None) -> None:
        """φ - mean in the place of the weights that are in the model; then a step of the outer optimizer; then φ everywhere."""
        branches, weights = self._branches, self._branches.weights
        here = branches.current - branches.local.start
        narrow = any(wide_dtype(p.dtype) != p.dtype for p in weights.live)
        means = self._means(weights, part, here, shown=only is not None)
        if narrow:
            weights.keep(_GRADIENT)
            gradients = weights.values(_GRADIENT)
            means = self._rows.means(
                [list(of.values()) for of in self._lists(weights)],
                part,
                [*weights.values(SLOW).values()],
                list(gradients.values()),
            )
            means = ((mean, (*block[:here], block[-1], *block[here + 1 : -1])) for mean, block in means)
        settle(means, len(branches.local), difference, here)
        outer.follow(weights.values(SLOW))
        with nullcontext() if only is None else outer.tried():
            outer.step(gradients if narrow else {p: p.detach() for p in weights.live})
            self._start_from_slow(everywhere=only is None)
        weights.drop(_GRADIENT)

    def _start_from_slow(self, *, everywhere: bool) -> None:
        weights = self._branches.weights
        weights.restore(SLOW)
        for branch in self._branches.others() if everywhere else ():
            weights.store(waiting(branch))

    def _copy_counters(self) -> None:
        """Counters and the like are those of the last branch: the one in the model where a round ends by itself."""
        counters, last = self._branches.counters, self._rows.branches - 1
        if waiting(last) in counters:
            counters.restore(waiting(last))
        self._rows.copy_(counters.live, last)
        for branch in self._branches.others():
            counters.store(waiting(branch))

    def _nested_slow(self, alphas: Sequence[float]) -> Iterator[tuple[list[list[Tensor]], float]]:
        """The slow weights of a wrapper inside this one are weights too: a branch that restarts takes its φ along."""
        inside = [self._nested(b) for b in self._branches.local]
        for name, (weights, *_) in self._nested(self._branches.current).items():
            if SLOW in weights:
                lists = [of[name][0].values(SLOW) for of in inside]
                slow = self._slow_of(f"slow.{name}.slow", weights.values(SLOW), self._branches.weights.values(SLOW))
                yield from self._by_group(lists, slow, alphas)

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
        alphas = [1.0] * len(self._branches.groups)
        list(self._nested_slow(alphas))
        if self._mode == "interpolate":
            for name, ours in momentum.moments(self._branches.entries(self._branches.current)).items():
                self._slow_momentum(name, ours)

    def _momentum(self, alphas: Sequence[float], first: bool) -> list[tuple[list[list[Tensor]], float]]:
        """Reset momentum, or list it for interpolation between its value at the round's start (zero at first) and the mean."""
        if self._mode == "maintain":
            return []
        entries = [self._branches.entries(b) for b in self._branches.local]
        if self._mode == "reset":
            found_any = [momentum.reset(of) for of in entries]
            self._warn_without(any(found_any), first)
            return []
        found = [momentum.moments(of) for of in entries]
        self._warn_without(any(found), first)
        ours = found[self._branches.current - self._branches.local.start]
        return [
            each
            for name in ours
            for each in self._by_group(
                [of.get(name, {}) for of in found], self._slow_momentum(name, ours[name]), alphas
            )
        ]

    def _slow_momentum(self, name: str, ours: ByParam) -> ByParam:
        start = {p: torch.zeros_like(clone([m], wide=True)[0]) for p, m in ours.items()}
        return self._slow_of(f"slow.{name}", ours, start)

    def _warn_without(self, found: bool, first: bool) -> None:
        if not found and first:
            momentum.warn_without_momentum(self._mode, self._branches.optimizer)

    def _rejoin(self, part: list[bool], why: str) -> None:
        """Branches left out have the average's weights by now, and take a healthy branch's inner optimizer."""
        branches = self._branches
        left_out = [b for b, takes_part in enumerate(part) if not takes_part]
        for branch in left_out:
            warnings.warn(f"branch {branch} of {len(part)} {why}", RuntimeWarning, stacklevel=2)
        healthy = [b for b in branches.local if part[b]]
        if branches.current in left_out and healthy:
            branches.load(healthy[0], same_weights=True)
        for branch in left_out:
            if branch in branches.others():
                branches.restart(branch)
        if left_out and len(branches.local) < self._rows.branches:
            self._take_inner_state(part, [b for b in branches.local if not part[b]])

    def _take_inner_state(self, part: list[bool], left_out: Sequence[int]) -> None:
        """The inner state that one process would give them, from whatever row: all have taken the same steps and keep the same."""
        branches, last = self._branches, len(part) - 1
        healthy = last if part[last] else part.index(True)
        theirs = clone(self._inner_tensors(healthy if healthy in branches.local else branches.current))
        self._rows.copy_(theirs, healthy)
        for branch in left_out:
            copy_(self._inner_tensors(branch), theirs)

    def _inner_tensors(self, branch: int) -> list[Tensor]:
        entries = self._branches.entries(branch).values()
        return [v for entry in entries for _, v in sorted(entry.items()) if isinstance(v, Tensor)]

    def restart(self, alphas: Sequence[float], *, unfinished: bool) -> None:
        """Make the weights and buffers in the model the common start of everything that is weights; momentum goes as at an average."""
        branches, count = self._branches, len(self._branches.local)
        if not all_finite(branches.params()):
            raise NotFiniteError(
                "the weights in the model are infinite or NaN: no round can start from them", "the new start"
            )
        with self._rows.meeting("a restart"):
            part = self._with_finite_state()
            for lists, alpha in self._momentum(alphas, False) if unfinished else ():
                settle(self._rows.means(lists[:count], part, *lists[count:]), count, Towards(alpha))
            self._overwrite()
            self._rejoin(part, "has an inner state that is infinite or NaN: it takes another branch's at this restart")

    def _with_finite_state(self) -> list[bool]:
        """The branches whose inner state is finite, by which one that diverged is known after its weights were replaced."""
        branches = self._branches
        if not self._careful:
            return [True] * self._rows.branches
        entries = [branches.entries(b).values() for b in branches.local]
        well = [all_finite([t for e in of for t in e.values() if _is_floating(t)]) for of in entries]
        part = self._rows.agree(0, branches.params(), well)
        if not any(part):
            raise NotFiniteError(
                f"the inner state of all {len(part)} branches is infinite or NaN: build a new optimizer to go on",
                "every branch",
            )
        return part

    def _overwrite(self) -> None:
        """Put the model's values wherever this wrapper, or one inside it, keeps some."""
        self._branches.follow()
        for kept in self._branches.kept:
            for name in kept.names:
                kept.store(name)
        inside = [kept for b in self._branches.local for of in self._nested(b).values() for kept in of]
        pairs = [pair for kept in inside for name in kept.names for pair in kept.pairs(name)]
        pairs += [(p, phi) for label, of in self.own.items() if label.endswith(".slow") for p, phi in of.items()]
        copy_([phi for _, phi in pairs], [live for live, _ in pairs])


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
