"""Gradients that are there when the branch changes: they were taken at other weights, and must not reach another branch's step."""

from collections.abc import Iterator, Sequence
from typing import Any
from weakref import ref

from torch import Tensor

from lookaround.tensors import local

Group = dict[str, Any]
Seen = tuple[ref[Tensor], int]


def seen(groups: Sequence[Group]) -> Seen | None:
    """A gradient there is, and how often it has been written to. Quick, for every turn."""
    for group in groups:
        for param in group["params"]:
            if (grad := param.grad) is not None:
                return ref(grad), grad._version
    return None


class Left:
    """A gradient that a turn without a step has left.

    It may be added to no longer once it is zero when the next backward pass comes to it (``zero_grad(set_to_none=False)`` on the
    model): a hook on its parameter looks, once.

    Args:
        param: with a gradient that is not zero.
    """

    def __init__(self, param: Tensor) -> None:
        assert param.grad is not None
        self._grad = ref(param.grad)
        self._param = ref(param)
        self._zeroed = False
        if param.requires_grad:
            self._watch(param)

    def _watch(self, param: Tensor) -> None:
        left = ref(self)

        def look(_: Tensor) -> None:
            handle.remove()
            if (ours := left()) is not None:
                ours._zeroed = not ours.is_there()

        handle = param.register_hook(look)

    def is_there(self) -> bool:
        """Whether it still stands, and has been neither replaced nor set to zero since. It may wait for the device."""
        grad, param = self._grad(), self._param()
        return not self._zeroed and grad is not None and param is not None and param.grad is grad and _is_nonzero(grad)


def left(groups: Sequence[Group], before: Seen | None) -> Left | None:
    """What a turn without a step has left, where there were these gradients before."""
    now = seen(groups)
    if now is None or (before is not None and now[0]() is before[0]() and now[1] == before[1]):
        return None
    return next((Left(param) for param in _with_gradient(groups) if _is_nonzero(param.grad)), None)


def _with_gradient(groups: Sequence[Group]) -> Iterator[Tensor]:
    return (param for group in groups for param in group["params"] if param.grad is not None)


def _is_nonzero(grad: Tensor | None) -> bool:
    if grad is None:
        return False
    return bool((grad.coalesce().values() if grad.is_sparse else local(grad)).count_nonzero())
