"""An average that is under way while the branches go on: what they had when it set out, and how they take it in when it has come.

At a round's end branch i keeps s_i = θ_i and goes on from there, while the mean of all s_i is taken. When that has come

    φ ← φ + α (mean - φ),  or the outer optimizer's step on φ - mean,  and  θ_i ← θ_i + (φ - s_i)

so every branch is where all begin, with the way on top that it has come since. With α = 1 that is CoCoD-SGD (arXiv 1906.12043), whose
workers go on for a whole round, and the merge rule of LOSCAR-SGD (arXiv 2605.20866), whose workers go on for part of one.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lookaround.optim.average import Rows, towards
from lookaround.optim.background import Background
from lookaround.optim.branches import Branches
from lookaround.optim.common import Common
from lookaround.optim.kept import SLOW, waiting
from lookaround.optim.moving import by_group
from lookaround.optim.taking_part import require_any
from lookaround.tensors import Tensors, blocks, clone, copy_, wide_dtype

# Where what is under way stands among `Common.own`, and so in checkpoints: s_i of branch i, and the mean.
SENT, MEAN = "sent.", "mean"


class Overlap:
    """The average under way, of which there is one at a time.

    Its tensors are there from the first step on, so a checkpoint's keys do not change. Where all branches are here the mean is taken at
    once; over processes in a thread of its own.

    Args:
        branches: here.
        rows: where all branches are, which nobody else may be talking over meanwhile: `wait` comes before anything is sent.
        common: what branches have in common.
    """

    def __init__(self, branches: Branches, rows: Rows, common: Common) -> None:
        self._branches, self._rows, self._common = branches, rows, common
        self._work: Background[list[bool]] | None = None
        self._part: list[bool] = []

    def wait(self) -> list[bool]:
        """Who takes part in the average that was sent last, as soon as it is here.

        Raises:
            LostRankError: a process did not come to it.
            NotFiniteError: no branch could.
        """
        if self._work is not None:
            self._part, self._work = self._work.wait(), None
        return self._part

    def settle(self) -> None:
        """Have no thread running, whatever comes of it."""
        if self._work is not None:
            self._work.settle()

    def go_on(self, part: list[bool]) -> None:
        """Be where a checkpoint was, whose average had come and is among what it had.

        Raises:
            ValueError: what it had is of other shapes.
        """
        for label in [label for label in self._common.own if label == MEAN or label.startswith(SENT)]:
            for param, value in self._common.own[label].items():
                if value.shape != param.shape:
                    raise ValueError(
                        f"the checkpoint's {label} has the shape {tuple(value.shape)} where the parameter has {tuple(param.shape)}: "
                        "load the checkpoint of this model"
                    )
        self.settle()
        self._work, self._part = None, part

    def prepare(self) -> None:
        """Create all tensors, or those that are missing."""
        weights = self._weights(self._branches.current)
        for branch in self._branches.local:
            self._kept(f"{SENT}{branch}", weights)
        self._kept(MEAN, weights, wide=True)

    def _weights(self, branch: int) -> dict[Any, Tensor]:
        kept = self._branches.weights
        if branch == self._branches.current:
            return dict(zip(kept.keys, kept.live, strict=True))
        return kept.values(waiting(branch))

    def _kept(self, label: str, like: Mapping[Any, Tensor], wide: bool = False) -> list[Tensor]:
        """The tensors under a label for these parameters, and none for others."""
        before = self._common.own.get(label, {})
        now = {p: before[p] if p in before and _fits(before[p], t, wide) else _new(t, wide) for p, t in like.items()}
        self._common.own[label] = now
        return list(now.values())

    @torch.no_grad()
    def send(self, round_number: int) -> None:
        """Keep what every branch here has, and have the mean over all branches set out."""
        branches = self._branches
        branches.follow()
        self.prepare()
        weights = {branch: self._weights(branch) for branch in branches.local}
        sent = [self._kept(f"{SENT}{branch}", of) for branch, of in weights.items()]
        for kept, of in zip(sent, weights.values(), strict=True):
            copy_(kept, list(of.values()))
        mean = self._kept(MEAN, weights[branches.current], wide=True)
        well, lost = self._common.well(), self._common.lost()
        take = partial(_take_mean, self._rows, round_number, well, sent, mean)
        if lost is not None:
            take = partial(take, start=list(branches.weights.values(SLOW).values()), lost=list(lost.values()))
        if len(branches.local) < self._rows.branches and mean:
            self._work = Background(take, mean[0].device)
        else:
            self._part = take()

    @torch.no_grad()
    def land(self, alphas: Sequence[float], *, keep_slow: bool = False, progress: bool = True) -> None:
        """Take in the average under way: φ moves, and every branch goes by as much as φ is from what it sent.

        Args:
            alphas: of every group, as they are now.
            keep_slow: begin to keep φ, where it was not.
            progress: keep what branches have done since; otherwise, and in a branch that had no part in it, all are φ afterwards.
        """
        part, branches = self.wait(), self._branches
        branches.follow()
        slow = self._moved(alphas)
        if keep_slow and SLOW not in branches.weights:
            branches.weights.keep(SLOW)
            copy_([branches.weights.values(SLOW)[p] for p in slow], list(slow.values()))
        for branch in branches.local:
            weights, sent = self._weights(branch), self._common.own[f"{SENT}{branch}"]
            there = [p for p in slow if p in weights and p in sent]
            lists = [[of[p] for p in there] for of in (weights, slow, sent)]
            if progress and part[branch]:
                _add_way(*lists)
            else:
                copy_(lists[0], lists[1])

    def newcomers(self, branch: int) -> list[Tensor]:
        """A branch's weights that had no part in the average that has come: they are trained since it set out."""
        return [t for p, t in self._weights(branch).items() if p not in self._common.own[MEAN]]

    def _moved(self, alphas: Sequence[float]) -> dict[Any, Tensor]:
        """φ after its step, by parameter; the mean itself where no φ is kept. It uses up the mean's memory."""
        weights, outer = self._branches.weights, self._common.outer
        live = self._weights(self._branches.current)
        # The model may have been turned to another dtype since: nothing is rounded to the one before.
        sent = self._common.own[MEAN]
        mean: dict[Any, Tensor] = {p: t.to(p.device, wide_dtype(p.dtype)) for p, t in sent.items() if p in live}
        slow: dict[Any, Tensor] = {p: phi for p, phi in weights.values(SLOW).items() if p in mean}
        if outer is not None:
            for phi, of in blocks(list(slow.values()), [mean[p] for p in slow]):
                torch._foreach_sub_(of, phi)
                torch._foreach_neg_(of)
            outer.follow(weights.values(SLOW))
            outer.step(mean)
            return slow
        for (of, phi), alpha in by_group(self._branches.optimizer.param_groups, [mean], slow, alphas) if slow else ():
            for each, where in blocks(of, phi):
                towards(alpha, each, where, False)
        return slow or mean

    @contextmanager
    def tried(self) -> Iterator[None]:
        """Inside, the average may land; afterwards all but the branch in the model is as it was, and it is under way."""
        weights, statistics, outer = self._branches.weights, self._branches.statistics, self._common.outer
        values = [*self._common.own[MEAN].values()]
        for name in (SLOW, *map(waiting, self._branches.others())):
            values += [*weights.values(name).values(), *statistics.values(name).values()]
        before = clone(values)
        if outer is not None:
            outer.follow(weights.values(SLOW))
        try:
            with outer.tried() if outer is not None else nullcontext():
                yield
        finally:
            copy_(values, before)

    def __getstate__(self) -> dict[str, Any]:
        """Of what has come: whoever copies waits before."""
        return {**self.__dict__, "_work": None}


def _fits(kept: Tensor, like: Tensor, wide: bool) -> bool:
    dtype = wide_dtype(like.dtype) if wide else like.dtype
    return (kept.shape, kept.dtype, kept.device) == (like.shape, dtype, like.device)


def _new(like: Tensor, wide: bool) -> Tensor:
    return clone([like], wide=wide)[0]


@torch.no_grad()
def _take_mean(
    rows: Rows,
    round_number: int,
    well: list[bool],
    sent: Sequence[Tensors],
    mean: Tensors,
    start: Tensors | None = None,
    lost: Tensors | None = None,
) -> list[bool]:
    """The mean of what all branches have sent; and who takes part in it."""
    with rows.meeting(f"the average of round {round_number}"):
        part, _ = rows.agree(round_number, sent[0], well)
        require_any(part)
        for values, block in rows.means(sent, part, mean, start=start, lost=lost):
            torch._foreach_copy_(block[-1], values)
    return part


def _add_way(weights: Tensors, slow: Tensors, sent: Tensors) -> None:
    """θ ← θ + (φ - s), in the dtype of φ: a weight that φ has as it was sent does not change."""
    for theta, phi, s in blocks(weights, slow, sent):
        wide = [t.to(f.dtype) for t, f in zip(theta, phi, strict=True)]
        way = torch._foreach_sub(phi, [t.to(f.dtype) for t, f in zip(s, phi, strict=True)])
        torch._foreach_copy_(theta, torch._foreach_add(wide, list(way)))
