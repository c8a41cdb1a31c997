"""The buffers of a model, by name, and what an average does with each: one policy for all that average models."""

from collections.abc import Iterator
from typing import Literal

from torch import Tensor, nn

Policy = Literal["average", "copy"]
"""What an average does with a tensor: average it over the points, or copy it from the last one."""

# torch.compile registers the module it wraps under a name that is no part of the model's own names.
_COMPILED = "_orig_mod."


def buffer_policy(key: str, tensor: Tensor) -> Policy:
    """Running statistics are averaged; counters, spectral norm's vectors, masks and tables are copied.

    A mean of two of spectral norm's unit vectors is none, and of two masks no mask; only what is an average itself
    (``running_mean``, ``running_var`` and their like, by their name) can be averaged further.

    >>> import torch
    >>> buffer_policy("running_var", torch.ones(2)), buffer_policy("_u", torch.ones(2)), buffer_policy("running", torch.tensor(1))
    ('average', 'copy', 'copy')
    """
    floating = tensor.is_floating_point() or tensor.is_complex()
    return "average" if floating and key.startswith("running_") else "copy"


class Buffers:
    """The persistent buffers of a model; one that modules share, once, by its first name.

    Args:
        model: the module; None has no buffers.
    """

    def __init__(self, model: nn.Module | None) -> None:
        places = [*_places(model)] if model is not None else []
        self._places: dict[str, tuple[nn.Module, str]] = {name: (owner, key) for name, owner, key in places}

    def now(self) -> dict[str, Tensor]:
        """The tensors by name, as the modules have them now (``Module.to`` replaces them); what has been taken out is not there."""
        found = {name: owner._buffers.get(key) for name, (owner, key) in self._places.items()}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def differ(self, model: nn.Module) -> bool:
        """Whether the model has other buffers by now, under other names or in other modules."""
        return {name: (owner, key) for name, owner, key in _places(model)} != self._places

    def policy(self, name: str) -> Policy:
        """What an average does with a buffer."""
        owner, key = self._places[name]
        buffer = owner._buffers[key]
        assert buffer is not None
        return buffer_policy(key, buffer)


def _places(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for key, buffer in module._buffers.items():
            if buffer is not None and id(buffer) not in seen and key not in module._non_persistent_buffers_set:
                seen.add(id(buffer))
                yield f"{prefix}.{key}".lstrip(".").replace(_COMPILED, ""), module, key
