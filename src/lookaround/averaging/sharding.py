"""Sharded tensors beside whole ones: gathering, sharding, and the sharded models that cannot be averaged."""

import sys
from typing import Any

from torch import Tensor, nn

from lookaround.tensors import copy_


def whole(tensor: Tensor) -> Tensor:
    """The tensor with all shards of a DTensor gathered (every process must call it), or ``tensor`` itself."""
    tensor = tensor.detach()
    if hasattr(tensor, "full_tensor"):
        gathered: Tensor = tensor.full_tensor()
        return gathered
    return tensor


def layout(tensor: Tensor) -> tuple[Any, Any] | None:
    """The mesh and placements of a DTensor, None for a plain tensor: equal where each process holds the same part of both."""
    mesh = getattr(tensor, "device_mesh", None)
    return None if mesh is None else (mesh, getattr(tensor, "placements", None))


def copy_across(targets: list[Tensor], values: list[Tensor]) -> None:
    """Write ``values`` into ``targets``, whether they are plain or sharded: gathered or sharded one by one as needed.

    Every process must call it; a plain value must be the same on all of them.
    """
    for target, value in zip(targets, values, strict=True):
        copy_([target], [value if layout(value) == layout(target) else _shard_like(whole(value), target)])


def _shard_like(value: Tensor, target: Tensor) -> Tensor:
    where = layout(target)
    if where is None:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, *where, src_data_rank=None)


def refuse_fsdp1(model: nn.Module) -> None:
    """Raise for parameters of which each process holds an unnamed piece: they look like small weights of another shape.

    Raises:
        ValueError: A part of ``model`` is sharded by ``FullyShardedDataParallel``.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    for name, module in model.named_modules() if fsdp else ():
        if not isinstance(module, fsdp.FullyShardedDataParallel):  # type: ignore[union-attr]
            continue
        if module.sharding_strategy is not fsdp.ShardingStrategy.NO_SHARD:  # type: ignore[union-attr]
            raise ValueError(
                f"{name or 'the model'} is sharded by FullyShardedDataParallel (FSDP1), which leaves this process flat pieces of "
                "the weights instead of the weights; shard it with torch.distributed.fsdp.fully_shard (FSDP2)"
            )
