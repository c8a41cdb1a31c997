"""What a model is made of, so that an average notices when it is no longer the model it was built for."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lookaround.averaging.slots import Slot, own_tensors, persistent, require_equal


def refuse_unaveraged(slots: Iterable[Slot]) -> None:
    """Raise for tensors whose elements cannot be read and written in place, one by one.

    Raises:
        ValueError: One is sparse, quantized, a conjugated view, or has no shape yet.
    """
    for slot in slots:
        if is_lazy(slot.tensor):
            raise ValueError(f"{slot.name!r} has no shape yet; run the model once before building an average of it")
        if not _is_ordinary(slot.tensor):
            raise ValueError(
                f"{slot.name!r} is sparse, quantized or a conjugated or negated view; make it an ordinary tensor first "
                "(to_dense(), dequantize(), resolve_conj(), resolve_neg())"
            )


def _is_ordinary(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not (tensor.is_conj() or tensor.is_neg() or tensor.is_quantized)


class Structure:
    """The names, shapes and ties of a model's tensors, as they were at construction.

    >>> from lookaround.averaging.structure import Structure
    >>> import torch
    >>> from lookaround.averaging.slots import find_slots
    >>> model = torch.nn.Linear(2, 1)
    >>> structure = Structure(model, find_slots(model))
    >>> model.register_buffer("seen", torch.zeros(1))
    >>> structure.check(model)
    Traceback (most recent call last):
    ValueError: the model, which has changed since its average was built, does not match: unexpected: seen...
    """

    def __init__(self, model: nn.Module, slots: list[Slot]) -> None:
        self._expected = _described(model)
        self._slots = slots
        self._last: dict[tuple[int, str], tuple[Tensor, torch.Size]] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Places are known by the identity of what holds them, which a copy does not share.
        return {**self.__dict__, "_last": {}}

    def check(self, model: nn.Module) -> None:
        """Quick where nothing has changed: a look at every tensor, and no names.

        Raises:
            ValueError: A tensor is missing, new, of another shape or kind, no longer tied, or newly so.
        """
        if self._is_unchanged(model):
            return
        holders = {id(place) for m in model.modules() for place in (m._parameters, m._buffers)}
        for slot in self._slots:
            slot.check_owner(holders)
        what = "the model, which has changed since its average was built,"
        require_equal(self._expected, _described(model), what, "; build a new average after changing the model")
        refuse_unaveraged(self._slots)
        places = [(owner, key, owner[key]) for slot in self._slots for owner, key in slot.places]
        self._last = {(id(owner), key): (tensor, tensor.shape) for owner, key, tensor in places}

    def _is_unchanged(self, model: nn.Module) -> bool:
        """Whether every place holds the very tensor it held at the last check, in the shape it had."""
        left = len(self._last)
        for module in model.modules():
            for owner, key, tensor in persistent(module):
                last, shape = self._last.get((id(owner), key), (None, None))
                if last is not tensor or tensor.shape != shape:
                    return False
                left -= 1
        return left == 0


def _described(model: nn.Module) -> dict[str, str]:
    first: dict[int, str] = {}
    described = {}
    for name, tensor in own_tensors(model):
        same = first.setdefault(id(tensor), name)
        described[name] = str(tuple(tensor.shape)) + (f", tied to {same}" if same != name else "")
    return described
