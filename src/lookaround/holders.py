"""Who holds the weights of a model: what averages over time ask before they sample them, and tell when they write to them.

A wrapper with branches, in the middle of a round, has one of them in the model, and keeps weights of its own. Averages over time import
no wrapper and need not be told of one, so wrappers enter themselves here, weakly: one that is gone is not found.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import combinations
from typing import Any, Protocol
from weakref import WeakSet

from torch import Tensor


class Holder(Protocol):
    """A wrapper, as averages over time see it."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Groups of the parameters it holds."""

    @property
    def apart(self) -> bool:
        """Whether the model may hold something else than the average."""

    @property
    def spread(self) -> bool:
        """Whether all processes have to ask for the average, for it to be shown."""

    @property
    def shared(self) -> object:
        """What handles on the same wrapper have in common."""

    def averaged(self) -> AbstractContextManager[None]:
        """The average in the model."""

    def average(self) -> None:
        """End the round now, with the average in the model."""

    def restart(self) -> None:
        """Go on from the weights in the model, which something else has written."""


_HOLDERS: WeakSet[Holder] = WeakSet()


def hold(holder: Holder, inside: Sequence[object] = ()) -> None:
    """Enter a wrapper, which stands for those it is wrapped around from now on."""
    _HOLDERS.add(holder)
    for wrapped in inside:
        _HOLDERS.discard(wrapped)  # type: ignore[arg-type]


@contextmanager
def averaged(tensors: Sequence[Tensor]) -> Iterator[None]:
    """A context in which a model's tensors hold the average of whoever holds them; the tensors as they are if nobody does.

    Raises:
        ValueError: All processes are needed for that, or two wrappers are in the middle of a round with the same parameters.
    """
    found = _holders(tensors, [each for each in _HOLDERS if each.apart or each.spread])
    for holder, _ in found:
        if holder.spread:
            raise ValueError(
                f"these weights are held by a {type(holder).__name__} whose branches are spread over processes, and the model may hold "
                "one of them: pass point=optimizer.averaged to sample their average, from every process, or point=nullcontext for what is "
                "in the model"
            )
    apart = [(holder, held) for holder, held in found if holder.apart]
    _require_disjoint(apart)
    with ExitStack() as stack:
        for holder, _ in apart:
            stack.enter_context(holder.averaged())
        yield


def end_rounds_of_others(tensors: Sequence[Tensor]) -> None:
    """Before a model's tensors are written: whoever holds trained weights beside them goes on with those from their average, not from
    the branch that the model happens to hold."""
    for holder, held in _holders(tensors, [each for each in _HOLDERS if each.apart]):
        if any(p.requires_grad and id(p) not in held for group in holder.param_groups for p in group["params"]):
            holder.average()


def restart(tensors: Sequence[Tensor]) -> None:
    """Have whoever holds a model's tensors go on from what has been written into them."""
    for holder, _ in _holders(tensors, list(_HOLDERS)):
        holder.restart()


def _holders(tensors: Sequence[Tensor], among: Sequence[Holder]) -> list[tuple[Holder, set[int]]]:
    """Those that hold some of the tensors, and the identities of those they do; one for all handles on it."""
    wanted = {id(t) for t in tensors} if among else set()
    found = {}
    for holder in among:
        if held := {id(p) for group in holder.param_groups for p in group["params"]} & wanted:
            found[id(holder.shared)] = holder, held
    return list(found.values())


def _require_disjoint(apart: Sequence[tuple[Holder, set[int]]]) -> None:
    for (first, one), (second, other) in combinations(apart, 2):
        if one & other:
            raise ValueError(
                f"the same weights are held by two optimizers in the middle of a round, a {type(first).__name__} and a "
                f"{type(second).__name__}: pass point=optimizer.averaged of the one that trains, end the other's round with average(), or "
                "delete it"
            )
