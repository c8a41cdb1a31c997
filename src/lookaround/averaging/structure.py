"""What a model is made of, so that an average notices when it is no longer the model it was built for."""

from collections.abc import Iterable

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
        self._places = {
            (id(owner), key): (slot.tensor.shape, index)
            for index, slot in enumerate(slots)
            for owner, key in slot.places
        }
        self._slots = slots

    def check(self, model: nn.Module) -> None:
        """Quick where nothing has changed: a look at every tensor, and no names.

        Raises:
            ValueError: A tensor is missing, new, of another shape or kind, no longer tied, or newly so.
        """
        if self._is_same(model):
            return
        for slot in self._slots:
            slot.check_owner(model)
        what = "the model, which has changed since its average was built,"
        require_equal(self._expected, _described(model), what, "; build a new average after changing the model")
        refuse_unaveraged(self._slots)

    def _is_same(self, model: nn.Module) -> bool:
        seen: dict[int, int] = {}
        left = len(self._places)
        for owner, key, tensor in (place for module in model.modules() for place in persistent(module)):
            shape, index = self._places.get((id(owner), key), (None, -1))
            if tensor.shape != shape or seen.setdefault(id(tensor), index) != index or not _is_ordinary(tensor):
                return False
            left -= 1
        return left == 0 and len(seen) == len(self._slots)


def _described(model: nn.Module) -> dict[str, str]:
    first: dict[int, str] = {}
    described = {}
    for name, tensor in own_tensors(model):
        same = first.setdefault(id(tensor), name)
        described[name] = str(tuple(tensor.shape)) + (f", tied to {same}" if same != name else "")
    return described
