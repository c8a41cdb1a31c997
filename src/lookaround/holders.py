"""Who holds the weights of a model: what averages over time ask before they sample them, and tell when they write to them.

A wrapper with branches, in the middle of a round, has one of them in the model, and keeps weights of its own. Averages over time import
no wrapper and need not be told of one, so wrappers enter themselves here, weakly: one that is gone is not found, and what it was wrapped
around, which it stood for, is.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import combinations
from typing import Any, Protocol
from weakref import WeakSet

import torch
from torch import Tensor

from lookaround.tensors import local


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

    @property
    def inside(self) -> Sequence[object]:
        """What is ``shared`` of those it is wrapped around, in every branch."""

    @property
    def written(self) -> Sequence[Tensor]:
        """The tensors of the model that it writes its average to."""

    @property
    def going_around(self) -> bool:
        """Whether the body of a loop over its branches is running."""

    def averaged(self) -> AbstractContextManager[None]:
        """The average in the model."""

    def average(self) -> None:
        """End the round now, with the average in the model."""

    def restart(self) -> None:
        """Go on from the weights in the model, which something else has written."""

    def bar(self, by: str) -> None:
        """Refuse steps and the like until `unbar`, naming who has something else in the model."""

    def unbar(self, by: str) -> None:
        """The end of `bar`."""


_HOLDERS: WeakSet[Holder] = WeakSet()
Found = list[tuple[Holder, set[int]]]


def hold(holder: Holder) -> None:
    """Enter a wrapper, which stands for those it is wrapped around as long as it is there."""
    _HOLDERS.add(holder)


@contextmanager
def averaged(tensors: Sequence[Tensor]) -> Iterator[None]:
    """A context in which a model's tensors hold the average of whoever holds them; the tensors as they are if nobody does.

    The tensors must not be written in the body: a backward pass whose forward came before goes on as if nothing had been.

    Raises:
        ValueError: All processes are needed for that, or two wrappers are in the middle of a round with the same parameters.
    """
    anyone = any(h.apart or h.spread for h in _HOLDERS)
    found = [(h, held) for h, held in _find(tensors) if h.apart or h.spread] if anyone else []
    for holder, _ in found:
        if holder.spread:
            raise ValueError(
                f"these weights are held by a {type(holder).__name__} whose branches are spread over processes, and the model may hold "
                "one of them: pass point=optimizer.averaged to sample their average, from every process, or point=nullcontext for what is "
                "in the model"
            )
    _require_disjoint(found)
    with ExitStack() as stack:
        for holder, _ in found:
            stack.enter_context(unnoticed(holder.written))
            stack.enter_context(holder.averaged())
        yield


@contextmanager
def given(point: Callable[[], AbstractContextManager[object]]) -> Iterator[None]:
    """A context of the user's for the same; where it is the ``averaged`` of a wrapper, autograd does not notice it either."""
    whose = getattr(getattr(point, "__self__", None), "shared", None)
    known = [h for h in _HOLDERS if whose is not None and h.shared is whose]
    with unnoticed(known[0].written if known else []), point():
        yield


def unnoticed(tensors: Sequence[Tensor]) -> AbstractContextManager[object]:
    """A context after which autograd takes tensors for unchanged: for other values that are there for a while, and nobody computes with.

    A backward pass between whose forward and itself that happens has the values it needs again, bit for bit, and would refuse them.
    """
    versioned = tuple(local(t) for t in tensors if not t.is_inference())
    context: AbstractContextManager[object] = torch.autograd._unsafe_preserve_version_counter(versioned)  # type: ignore[attr-defined]
    return context


def refuse_turns(call: str, tensors: Sequence[Tensor]) -> None:
    """Raise ValueError in the body of a loop over the branches of whoever holds a model's tensors."""
    for holder, _ in _find(tensors):
        if holder.going_around:
            raise ValueError(
                f"{call} was called in the body of a loop over around() of a {type(holder).__name__}, which writing weights into the "
                "model would end: go over the branches with `for branch in optimizer.around():` for each minibatch, and call it after "
                "that loop"
            )


def end_rounds_of_others(tensors: Sequence[Tensor]) -> None:
    """Before a model's tensors are written: whoever holds trained weights beside them goes on with those from their average, not from
    the branch that the model happens to hold."""
    for holder, held in _find(tensors):
        others = [p for group in holder.param_groups for p in group["params"] if id(p) not in held]
        if holder.apart and any(p.requires_grad for p in others):
            holder.average()


def restart(tensors: Sequence[Tensor]) -> None:
    """Have whoever holds a model's tensors go on from what has been written into them."""
    for holder, _ in _find(tensors):
        holder.restart()


@contextmanager
def barred(tensors: Sequence[Tensor], by: str) -> Iterator[None]:
    """A context in which whoever holds a model's tensors neither steps nor averages, since they hold something to look at."""
    found = [holder for holder, _ in _find(tensors)]
    for holder in found:
        holder.bar(by)
    try:
        yield
    finally:
        for holder in found:
            holder.unbar(by)


def _find(tensors: Sequence[Tensor]) -> Found:
    """Those that hold some of the tensors, and the identities of those they do; one for all handles on it and on what is inside it."""
    everybody = list(_HOLDERS)
    wanted = {id(t) for t in tensors} if everybody else set()
    inside = {id(shared) for holder in everybody for shared in holder.inside}
    found = {}
    for holder in everybody:
        held = {id(p) for group in holder.param_groups for p in group["params"]} & wanted
        if held and id(holder.shared) not in inside:
            found[id(holder.shared)] = holder, held
    return list(found.values())


def _require_disjoint(apart: Found) -> None:
    for (first, one), (second, other) in combinations(apart, 2):
        if one & other:
            raise ValueError(
                f"the same weights are held by two optimizers in the middle of a round, a {type(first).__name__} and a "
                f"{type(second).__name__}: pass point=optimizer.averaged of the one that trains, end the other's round with average(), or "
                "delete it"
            )
