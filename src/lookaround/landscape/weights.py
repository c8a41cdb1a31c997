"""Weight vectors: the parameters of a model as one flat tensor, and the way back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from lookaround.tensors import local, wide_dtype

Weights = nn.Module | Tensor | Sequence[Tensor]


def unwrap(model: nn.Module) -> nn.Module:
    """The model itself, out of DataParallel, DDP, AveragedModel and ``torch.compile``."""
    while True:
        if isinstance(model, (DataParallel, DistributedDataParallel, AveragedModel)):
            model = model.module
        elif "_orig_mod" in model._modules:
            model = model.get_submodule("_orig_mod")
        else:
            return model


def flatten(weights: Weights) -> Tensor:
    """All weights as one vector, in the order of ``model.parameters()`` and in at least float32.

    Args:
        weights: a model (its parameters, tied ones once; buffers are no weights), a list of tensors, or a vector. A
            vector of the right dtype is returned as it is; everything else is copied.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lookaround.landscape import flatten
        >>> flatten(nn.Linear(2, 3)).shape
        torch.Size([9])
        >>> flatten([torch.zeros(2), torch.ones(1)])
        tensor([0., 0., 1.])

    Raises:
        ValueError: there are none, or they are sharded over processes.

    Source: the order of `torch.nn.utils.parameters_to_vector`.
    """
    if isinstance(weights, nn.Module):
        refuse_shards(weights)
        weights = list(weights.parameters())
    if isinstance(weights, Tensor):
        _refuse_shard(weights, "the vector")
        return local(weights).reshape(-1).to(wide_dtype(weights.dtype))
    for index, weight in enumerate(weights):
        _refuse_shard(weight, f"tensor {index}")
    parts = [local(w) for w in weights]
    if not parts:
        raise ValueError(
            "there are no weights to flatten; pass a model with parameters, or a non-empty list of tensors"
        )
    return torch.cat([p.reshape(-1).to(wide_dtype(p.dtype)) for p in parts])


def refuse_shards(model: nn.Module) -> None:
    """Raise for a model of which each process holds a part: a point of weight space would be another one on each.

    Raises:
        ValueError: naming the first parameter that is sharded.
    """
    for name, parameter in model.named_parameters():
        _refuse_shard(parameter, name)


def _refuse_shard(weight: Tensor, name: str) -> None:
    mesh = getattr(weight, "device_mesh", None)
    if mesh is not None and mesh.size() > 1:
        raise ValueError(
            f"{name} is sharded over {mesh.size()} processes, and a weight vector here is whole: gather the weights with "
            "torch.distributed.checkpoint.state_dict.get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)) "
            "and load them into a model that is not sharded"
        )


def flatten_state(model: nn.Module, state: Mapping[str, Tensor]) -> Tensor:
    """The weights in a state dict of ``model`` as one vector, in the order of :func:`flatten`.

    Args:
        model: says which entries are parameters and how they are ordered; it is not changed.
        state: tensors by the model's own names, such as a safetensors file holds. Buffers in it are passed over.

    Raises:
        ValueError: a parameter is missing, or has another shape.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lookaround.landscape import flatten_state
        >>> layer = nn.Linear(1, 1)
        >>> flatten_state(layer, {"weight": torch.tensor([[2.0]]), "bias": torch.tensor([3.0])})
        tensor([2., 3.])

    Source: the order of `torch.nn.utils.parameters_to_vector`.
    """
    own = dict(unwrap(model).named_parameters())
    missing = [name for name in own if name not in state]
    if missing:
        raise ValueError(f"the state dict has no {missing[0]!r} ({len(missing)} missing); pass one of the same network")
    for name, parameter in own.items():
        if state[name].shape != parameter.shape:
            raise ValueError(
                f"{name!r} has shape {tuple(state[name].shape)} in the state dict and {tuple(parameter.shape)} in the "
                "model; pass one of the same network"
            )
    return flatten([state[name].to(parameter.device) for name, parameter in own.items()])


@dataclass(frozen=True)
class Piece:
    """Where one parameter stands in the vector, and whether its elements are arranged channels-last there."""

    start: int
    stop: int
    shape: torch.Size
    dtype: torch.dtype
    channels_last: bool

    def arrange(self, rows: Tensor) -> Tensor:
        """This parameter's part of vectors ``(m, n)``, from the order of :func:`flatten` into the one it has in memory."""
        part = rows[:, self.start : self.stop]
        if not self.channels_last:
            return part
        return part.reshape(len(rows), *self.shape).movedim(2, -1).flatten(1)

    def view(self, flat: Tensor) -> Tensor:
        """The parameter as a view of an arranged vector."""
        part = flat[self.start : self.stop]
        if not self.channels_last:
            return part.view(self.shape)
        out, channels, *size = self.shape
        return part.view(out, *size, channels).movedim(-1, 1)


def pieces(model: nn.Module, channels_last: bool) -> dict[nn.Parameter, Piece]:
    """The place of each parameter of ``model``; with ``channels_last``, convolutions over images are arranged so."""
    found, start = {}, 0
    for parameter in model.parameters():
        if parameter.is_complex():
            raise ValueError(
                "the landscape of a model with complex parameters is not drawn; train it as pairs of reals"
            )
        stop = start + prod(parameter.shape)
        last = channels_last and parameter.ndim == 4
        found[parameter] = Piece(start, stop, parameter.shape, parameter.dtype, last)
        start = stop
    return found
