"""What models show: values to look at in the place of training weights, which come back when nobody looks any more.

Averages over time and wrappers with branches put an average into a model for a while, and know nothing of each other. Each such showing
enters itself here, weakly. One lies over another where they have tensors in common, and whatever the order they are left in, they are
taken off from the top: one that is left beneath another goes with that. So the first one's training weights are always the last to come.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import count
from weakref import WeakSet

from torch import Tensor

_OPEN: WeakSet["Showing"] = WeakSet()
_NUMBERS = count()


class Showing(ABC):
    """Values in a model to look at, from `show` until `leave`.

    Args:
        tensors: those of the model that hold them.

    Attributes:
        is_point: whether averages over time sample the model as it is meanwhile.
    """

    is_point = False

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = list(tensors)
        self.number, self.left = next(_NUMBERS), False
        # Held here: whoever opened one may have left it, and it has still to be taken off.
        self.below: list[Showing] = []

    @property
    @abstractmethod
    def title(self) -> str:
        """What it is, for messages."""

    @property
    def advice(self) -> str:
        """How to end it, for messages."""
        return "leave that block first"

    @abstractmethod
    def aside(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Tensors with what they held before; without those that hold it still."""

    @abstractmethod
    def put_back(self) -> None:
        """Write what the tensors held before."""

    def cover(self) -> None:  # noqa: B027  # only what looks at its tensors again has to do something
        """Take note of what the tensors hold: something else is about to be put there."""

    def overlaps(self, tensors: Iterable[Tensor]) -> bool:
        """Whether some of the tensors are among its own."""
        own = {id(t) for t in self.tensors}
        return any(id(t) in own for t in tensors)

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()  # a copy of whoever shows something is outside


def over(tensors: Sequence[Tensor]) -> list[Showing]:
    """What is shown in some of the tensors, the newest last."""
    return sorted((s for s in _OPEN if s.overlaps(tensors)), key=lambda s: s.number) if _OPEN else []


def show(showing: Showing) -> None:
    """Enter a showing, right before its values are written."""
    showing.below = over(showing.tensors)
    for beneath in showing.below:
        beneath.cover()
    _OPEN.add(showing)


def leave(showing: Showing) -> None:
    """Take a showing off: at once where nothing lies over it, else together with what does."""
    showing.left = True
    while ready := [s for s in _OPEN if s.left and not is_covered(s)]:
        _OPEN.discard(ready[0])
        ready[0].put_back()


def is_open(showing: Showing) -> bool:
    """Whether it has not been taken off yet."""
    return showing in _OPEN


def is_covered(showing: Showing) -> bool:
    """Whether another one lies over it."""
    return any(s.number > showing.number and s.overlaps(showing.tensors) for s in _OPEN)


def refuse(call: str, tensors: Sequence[Tensor], *, allowed: Showing | None = None, points: bool = False) -> None:
    """Raise ValueError where something is shown in some of the tensors.

    Args:
        call: what is being refused, for the message.
        tensors: of a model.
        allowed: may be shown, if nothing lies over it.
        points: whether the average of whoever trains the tensors may be shown.
    """
    for showing in reversed(over(tensors)):
        if showing is allowed:
            return
        if not (points and showing.is_point):
            raise ValueError(
                f"{call} was called while the model holds what {showing.title} shows in the place of the training weights: "
                f"{showing.advice}"
            )


def training(tensors: Sequence[Tensor]) -> list[Tensor]:
    """What the tensors will hold again when nobody looks any more."""
    found: dict[int, Tensor] = {}
    for showing in over(tensors):
        for tensor, value in showing.aside():
            found.setdefault(id(tensor), value)
    return [found.get(id(t), t) for t in tensors]
