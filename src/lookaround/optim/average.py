"""The average step: φ ← φ - α (φ - mean of the branches), or whatever an outer optimizer makes of that difference. Lists in, lists out."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import compress
from typing import Protocol

import torch
from torch import Tensor

from lookaround.packed import Block, cut
from lookaround.tensors import Tensors, blocks, wide_dtype

Means = Iterator[tuple[list[Tensor], tuple[list[Tensor], ...]]]


class Rows(Protocol):
    """Where the branches are: all here, or shared out to rows of processes of which this is one (`lookaround.distributed.Rows`)."""

    @property
    def branches(self) -> int:
        """How many there are, d."""

    @property
    def local(self) -> range:
        """Those that this process holds."""

    @property
    def exact(self) -> bool:
        """Whether weights come from other processes as they are; if not, `means` wants their common start and what was lost."""

    def meeting(self, what: str) -> AbstractContextManager[None]:
        """A context in which all rows are together, for what they do together."""

    def agree(
        self, round_number: int, tensors: Tensors, well: Sequence[bool], skipped: int = 0, k: int = 0
    ) -> tuple[list[bool], int]:
        """Of all branches, which are well, given those here; and of the k steps of a round, how many are skipped everywhere.

        ``skipped`` has a bit for each that is skipped here.
        """

    def means(
        self,
        branches: Sequence[Tensors],
        taking_part: Sequence[bool],
        *beside: Tensors,
        start: Tensors | None = None,
        lost: Tensors | None = None,
    ) -> Means:
        """The mean over all branches that take part, block by block: (mean, (views of the lists of ``branches`` …, ``beside`` …)).

        The mean is in the averaging dtype, and the caller's to change.
        """

    def copy_(self, tensors: Tensors, branch: int) -> None:
        """Write what ``branch`` has into ``tensors`` wherever they are."""


class Alone:
    """All branches are here.

    >>> Alone(3).local
    range(0, 3)
    """

    exact = True
    _nobody = nullcontext()  # made once: it keeps nothing

    def __init__(self, branches: int) -> None:
        self.branches, self.local = branches, range(branches)

    def meeting(self, what: str) -> AbstractContextManager[None]:
        """See `Rows.meeting`: there is nobody to meet."""
        return self._nobody

    def agree(
        self, round_number: int, tensors: Tensors, well: Sequence[bool], skipped: int = 0, k: int = 0
    ) -> tuple[list[bool], int]:
        """See `Rows.agree`."""
        return list(well), skipped.bit_count()

    def means(
        self,
        branches: Sequence[Tensors],
        taking_part: Sequence[bool],
        *beside: Tensors,
        start: Tensors | None = None,
        lost: Tensors | None = None,
    ) -> Means:
        """See `Rows.means`."""
        for block in blocks(*branches, *beside):
            yield mean_of([*compress(block[: len(branches)], taking_part)]), block

    def copy_(self, tensors: Tensors, branch: int) -> None:
        """See `Rows.copy_`: there is nowhere else."""


def mean_of(members: Sequence[list[Tensor]], *, in_place: bool = False) -> list[Tensor]:
    """The mean of several lists in the averaging dtype, in new memory or in that of the first one if it is of that dtype.

    It is the running one, m ← m + (θ_j - m) / j: no sum that could overflow, θ itself for one branch, and a weight that is equal in
    all branches stays exactly as it is. To be used under `torch.no_grad`, as all that follows.
    """
    wide = wide_dtype(members[0][0].dtype)
    mean = members[0] if in_place and members[0][0].dtype == wide else [t.to(wide, copy=True) for t in members[0]]
    for j, branch in enumerate(members[1:], start=2):
        _lerp_(mean, _near(branch, mean), 1 / j)
    return mean


# A flat block is a list of one, which goes without the overhead of torch's operations on lists.


def _lerp_(targets: list[Tensor], ends: list[Tensor], weight: float) -> None:
    if len(targets) == 1:
        targets[0].lerp_(ends[0], weight)
    else:
        torch._foreach_lerp_(targets, ends, weight)


def _sub_(targets: list[Tensor], others: list[Tensor]) -> None:
    if len(targets) == 1:
        targets[0].sub_(others[0])
    else:
        torch._foreach_sub_(targets, others)


def _add_(targets: list[Tensor], others: list[Tensor], alpha: float) -> None:
    if len(targets) == 1:
        targets[0].add_(others[0], alpha=alpha)
    else:
        torch._foreach_add_(targets, others, alpha=alpha)


def _near(tensors: list[Tensor], like: list[Tensor]) -> list[Tensor]:
    """Tensors with the dtype and on the device of others."""
    if tensors[0].dtype == like[0].dtype and tensors[0].device == like[0].device:
        return tensors
    return [t.to(like[0], non_blocking=True) for t in tensors]


Move = Callable[[list[Tensor], list[Tensor] | None, bool], list[Tensor]]


def towards(alpha: float, mean: list[Tensor], slow: list[Tensor] | None, keep: bool) -> list[Tensor]:
    """Where φ goes: φ ← φ - α (φ - mean), as gradient descent with rate α takes it; without φ the mean itself, α = 1.

    It is in φ's own memory, or (``keep``) in new one. The mean's memory is used up. Formed as φ + α (mean - φ), which rounds as gradient
    descent's φ - α (φ - mean) does: changes of sign are exact.
    """
    if slow is None:
        return mean
    phi = _near(slow, mean)
    _sub_(mean, phi)
    if keep:
        return list(torch._foreach_add(phi, mean, alpha=alpha))
    _add_(phi, mean, alpha)
    if phi is not slow:
        torch._foreach_copy_(slow, phi, non_blocking=True)
    return phi


def difference(mean: list[Tensor], slow: list[Tensor] | None, keep: bool) -> list[Tensor]:
    """φ - mean: what an outer optimizer takes for the gradient, in the mean's memory."""
    assert slow is not None
    _sub_(mean, _near(slow, mean))
    torch._foreach_neg_(mean)
    return mean


def settle(means: Means, branches: int, move: Move, only: int | None = None) -> None:
    """Consume means over ``branches`` lists: φ moves, and where it goes is where every branch starts from.

    Args:
        means: (mean, (a list of each branch here …, φ if there is one)), block by block.
        branches: how many there are.
        move: where φ goes, as `towards` does.
        only: write the result to this branch alone, and leave φ as it is.
    """
    for mean, block in means:
        slow = block[branches] if len(block) > branches else None
        result = move(mean, slow, only is not None)
        for target in block[:branches] if only is None else [block[only]]:
            _write(target, result)


def _write(target: list[Tensor], result: list[Tensor]) -> None:
    """Put a result, which may be one flat tensor, into the tensors it is of."""
    if target is result:
        return
    if len(target) == len(result) == 1:
        target[0].copy_(result[0], non_blocking=True)
    elif len(target) == len(result):
        torch._foreach_copy_(target, result, non_blocking=True)
    else:
        pieces = result.pieces if isinstance(result, Block) else cut(result[0], target)
        torch._foreach_copy_(target, pieces, non_blocking=True)
