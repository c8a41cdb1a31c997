"""The average step of weights and running statistics: their mean over all branches, and where φ goes from there."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lookaround.optim.average import Alone, Means, Rows, difference, settle, towards
from lookaround.optim.branches import Branches
from lookaround.optim.in_blocks import packed_means, settle_packed, settle_small
from lookaround.optim.kept import SLOW, Kept, waiting
from lookaround.optim.outer import Outer
from lookaround.packed import Packed
from lookaround.tensors import clone, wide_dtype

ByParam = dict[Tensor, Tensor]

# The gradient of an outer optimizer, where the weights' own memory has too few bits for it.
_GRADIENT = "slow gradient"


class Moving:
    """Takes branches to their average.

    Args:
        branches: here.
        rows: where all branches are.
        outer: moves φ; None for α.
    """

    def __init__(self, branches: Branches, rows: Rows, outer: Outer | None) -> None:
        self._branches, self._rows, self._outer = branches, rows, outer

    def at_once(self, alphas: Sequence[float], *, careful: bool) -> bool:
        """`move` of branches that are all here and nothing but weights, in few calls; whether that could be done, or nothing was.

        With ``careful`` it cannot where their mean is not finite: then some of them may have to be left out.
        """
        weights = self._branches.weights
        if self._outer is not None or len(alphas) > 1 or not weights.is_small:
            return False
        slow = weights.packed(SLOW) if SLOW in weights else None
        if slow is None and not careful:
            return True
        sets = self._sets(weights) if self._rows.branches > 1 else [None]
        spare, scratch = weights.spare.blocks[0], weights.scratch
        return settle_small(weights.layout, sets, alphas[0], slow, spare, scratch, careful=careful)

    def move(self, alphas: Sequence[float], part: list[bool], lost: ByParam | None, only: int | None = None) -> None:
        """Weights and statistics go to the average of those who take part; in the model alone, and φ stays, where ``only`` says its place.

        ``lost`` is what this row has lost on a wire that is not exact, by parameter.
        """
        if isinstance(self._rows, Alone):  # on detached views
            self._move(alphas, part, lost, only)
            return
        with torch.no_grad():
            self._move(alphas, part, lost, only)

    def _move(self, alphas: Sequence[float], part: list[bool], lost: ByParam | None, only: int | None) -> None:
        branches = self._branches
        weights = branches.weights
        if not weights.live:
            return
        if lost is not None and only is not None:
            lost = dict(
                zip(lost, clone(list(lost.values())), strict=True)
            )  # nothing is owed to an average that is only shown
        if self._outer is not None:
            self._outer_step(self._outer, part, lost, only)
        elif len(alphas) > 1 and len(set(alphas)) > 1 and SLOW in weights:
            self._move_by_group(alphas, part, lost, only)
        else:
            self._move_together(weights, alphas[0], part, lost, only)
        self.move_statistics(1.0 if self._outer else alphas[0], part, only)

    def move_statistics(self, alpha: float, part: list[bool], only: int | None = None) -> None:
        """Running statistics alone go to their average, as `move` takes them there."""
        branches = self._branches
        if branches.model is not None and branches.statistics.live:
            self._move_together(branches.statistics, alpha, part, None, only)

    def _move_together(
        self, kept: Kept, alpha: float, part: list[bool], lost: ByParam | None, only: int | None
    ) -> None:
        """All that is kept goes to the mean over all branches, or with φ as far as α says."""
        if not isinstance(self._rows, Alone):
            settle(self._means(kept, part, lost, only), len(self._branches.local), partial(towards, alpha), only)
            return
        slow = kept.packed(SLOW) if SLOW in kept else None
        if len(part) > 1 or slow is not None:
            settle_packed(kept.layout, self._sets(kept), part, alpha, slow, only)

    def _sets(self, kept: Kept) -> list[Packed | None]:
        """Each branch's, laid out as the model is; None for the one in the model."""
        current = self._branches.current
        return [None if b == current else kept.packed(waiting(b)) for b in self._branches.local]

    def _means(self, kept: Kept, part: list[bool], lost: ByParam | None, only: int | None) -> Means:
        """The mean over all branches of what is kept for each, beside φ if there is one."""
        slow = [kept.packed(SLOW)] if SLOW in kept else []
        if not isinstance(self._rows, Alone):
            values = [list(of.values()) for of in self._lists(kept)]
            start = slow[0] if lost is not None else None
            return self._rows.means(values, part, *slow, start=start, lost=list(lost.values()) if lost else None)
        in_place = only is None or part.index(True) == only
        return packed_means(kept.layout, self._sets(kept), part, *slow, in_place=in_place)

    @torch.no_grad()
    def _move_by_group(self, alphas: Sequence[float], part: list[bool], lost: ByParam | None, only: int | None) -> None:
        """The mean over all branches of the weights of each group, beside φ, with the group's α."""
        weights, count = self._branches.weights, len(self._branches.local)
        values = [*self._lists(weights), *([lost] if lost is not None else [])]
        for lists, alpha in by_group(self._branches.optimizer.param_groups, values, weights.values(SLOW), alphas):
            slow, owed = lists[-1], lists[count] if lost is not None else None
            means = self._rows.means(lists[:count], part, slow, start=slow, lost=owed)
            settle(means, count, partial(towards, alpha), only)

    def _lists(self, kept: Kept) -> list[Mapping[Any, Tensor]]:
        """Of each branch here, what is kept for it, by key."""
        live = dict(zip(kept.keys, kept.live, strict=True))
        return [live if b == self._branches.current else kept.values(waiting(b)) for b in self._branches.local]

    @torch.no_grad()
    def _outer_step(self, outer: Outer, part: list[bool], lost: ByParam | None, only: int | None) -> None:
        """φ - mean in the place of the weights that are in the model; then a step of the outer optimizer; then φ everywhere."""
        branches, weights = self._branches, self._branches.weights
        here = branches.current - branches.local.start
        narrow = any(wide_dtype(p.dtype) != p.dtype for p in weights.live)
        means = self._means_in_wide(part, here) if narrow else self._means(weights, part, lost, here)
        settle(means, len(branches.local), difference, here)
        outer.follow(weights.values(SLOW))
        with nullcontext() if only is None else outer.tried():
            outer.step(weights.values(_GRADIENT) if narrow else {p: p.detach() for p in weights.live})
            self._start_from_slow(everywhere=only is None)
        weights.drop(_GRADIENT)

    def _means_in_wide(self, part: list[bool], here: int) -> Means:
        """The mean of weights of few bits, beside the memory that their difference goes to, in the place of the branch in the model."""
        weights = self._branches.weights
        weights.keep(_GRADIENT)
        values = [list(of.values()) for of in self._lists(weights)]
        slow, gradients = [list(weights.values(name).values()) for name in (SLOW, _GRADIENT)]
        means = self._rows.means(values, part, slow, gradients)
        return ((mean, (*block[:here], block[-1], *block[here + 1 : -1])) for mean, block in means)

    def _start_from_slow(self, *, everywhere: bool) -> None:
        weights = self._branches.weights
        weights.restore(SLOW)
        for branch in self._branches.others() if everywhere else ():
            weights.store(waiting(branch))


def by_group(
    groups: Sequence[dict[str, Any]],
    lists: Sequence[Mapping[Any, Tensor]],
    slow: Mapping[Any, Tensor],
    alphas: Sequence[float],
) -> Iterator[tuple[list[list[Tensor]], float]]:
    """Parallel lists of the parameters of each group that all branches have, φ last if there is one, and the group's α."""
    for group, alpha in zip(groups, alphas, strict=True):
        at = [p for p in group["params"] if all(p in of for of in lists)]
        if at:
            yield [[of[p] for p in at] for of in (*lists, *([slow] if slow else []))], alpha
