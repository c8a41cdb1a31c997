"""The average step of a model that is laid out in blocks: every operation but the last is one on a flat tensor."""

from collections.abc import Sequence
from itertools import compress

import torch
from torch import Tensor

from lookaround.optim.average import Means, mean_of, towards
from lookaround.packed import Block, Layout, Packed, is_finite


def packed_means(
    layout: Layout, sets: Sequence[Packed | None], taking_part: Sequence[bool], *beside: Packed, in_place: bool
) -> Means:
    """As `Alone.means`, for a model and sets laid out as it is: a block of many small tensors is one flat tensor.

    ``sets`` has None for the branch in the model. With ``in_place`` the mean may take the memory of the first that takes part.
    """
    for i, parts in enumerate(layout.blocks):
        lists = [parts if of is None else of.blocks[i] for of in sets]
        mean = _mean_of_block(layout, i, lists, taking_part, in_place=in_place)
        yield mean, (*lists, *[of.blocks[i] for of in beside])


def settle_packed(
    layout: Layout,
    sets: Sequence[Packed | None],
    taking_part: Sequence[bool],
    alpha: float,
    slow: Packed | None = None,
    only: int | None = None,
) -> None:
    """As `settle` with `towards`, for a model and sets laid out as it is (None for the branch in the model): every operation but the
    last is one on a flat tensor. To be quick for models of any size: asked at every average.

    Args:
        layout: of the model.
        sets: each branch's.
        taking_part: which of them the mean is of.
        alpha: how far φ goes towards it.
        slow: φ, if there is one.
        only: write the result to this branch alone, and leave φ as it is.
    """
    for i, parts in enumerate(layout.blocks):
        held: list[list[Tensor]] = [parts if of is None else of.blocks[i] for of in sets]
        result = _mean_of_block(layout, i, held, taking_part, in_place=only is None or taking_part.index(True) == only)
        if slow is not None:
            result = towards(alpha, result, slow.blocks[i], only is not None)
        for block in held if only is None else held[only : only + 1]:
            if block is result:
                continue
            if block is parts:
                layout.scatter(i, result)
            else:
                block[0].copy_(result[0], non_blocking=True)


def settle_small(
    layout: Layout,
    sets: Sequence[Packed | None],
    alpha: float,
    slow: Packed | None,
    spare: Block,
    scratch: Tensor,
    *,
    careful: bool,
) -> bool:
    """As `settle_packed` of all branches of a small model, in few calls. With ``careful`` nothing changes where their mean is not finite.

    What is infinite or NaN in any of them is so in the mean (∞ - ∞ is NaN): one look at the mean, in ``spare``, instead of one at each.
    """
    parts, mean, result = layout.blocks[0], spare[0], spare
    _mean_of_small(parts, sets, mean, scratch)
    if careful and not is_finite(mean):
        return False
    if slow is not None:  # as `towards` does it
        result = slow.blocks[0]
        result[0].add_(mean.sub_(result[0]), alpha=alpha)
    for of in sets:
        if of is None:
            torch._foreach_copy_(parts, result.pieces)
        else:
            of.blocks[0][0].copy_(result[0])
    return True


def _mean_of_small(parts: list[Tensor], sets: Sequence[Packed | None], mean: Tensor, scratch: Tensor) -> None:
    """As `mean_of`. In memory that is there: to gather many tensors into new memory takes twice as long."""
    if len(sets) == 1:
        torch.cat(parts, out=mean)
        return
    first, second, *others = [torch.cat(parts, out=scratch) if of is None else of.blocks[0][0] for of in sets]
    torch.lerp(first, second, 1 / 2, out=mean)
    for j, other in enumerate(others, start=3):
        mean.lerp_(other, 1 / j)


def _mean_of_block(
    layout: Layout, i: int, held: list[list[Tensor]], taking_part: Sequence[bool], *, in_place: bool
) -> list[Tensor]:
    if len(held) == 1 and len(held[0]) > 1:
        return [layout.gather(i, wide=True)]
    members = [[layout.gather(i)] if len(of) > 1 else of for of in compress(held, taking_part)]
    return mean_of(members, in_place=in_place)
