"""Sets of weights beside the model's own, packed into few flat blocks, so that to exchange, copy or average a set takes few calls.

A model of 160 small tensors is 160 calls to whatever goes over it. The tensors of a model stay where they are; the memory of a further
set of them is ours, so there neighbours lie in one flat block: what the model has is gathered into a block by one call, the arithmetic
on a block is one call each, and only what goes back to the model is done tensor by tensor.

Everything here works on detached views, which record nothing for a backward pass whether gradients are enabled or not.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from operator import is_
from typing import Any, overload

import torch
from torch import Tensor

from lookaround.tensors import ORDINARY, block_size, finite_each, flat, is_dense, local, wide_dtype

# Elements of a model that is one small block.
SMALL = 2**18


class Block(list[Tensor]):
    """One flat tensor of a packed set as a list of one, and the same memory cut as the model's tensors are."""

    def __init__(self, memory: Tensor, pieces: list[Tensor]) -> None:
        super().__init__([memory])
        self.pieces = pieces


@dataclass(eq=False)
class _Run:
    """Neighbours that share a flat stretch of memory; or one tensor, cut into flat pieces if its memory is dense.

    Attributes:
        at: the tensors' places in the list.
        parts: one list of views for each block: of several tensors, or of one piece.
    """

    at: list[int]
    parts: list[list[Tensor]]


class Layout:
    """The tensors of a model, cut into blocks of about as many elements as fit the processor's cache.

    Args:
        tensors: on any devices, of any dtypes. Several small neighbours are a block together; a large tensor is several blocks; a
            tensor whose memory has gaps, a complex one, or one of a subclass (a DTensor's local shard) is one block as it is.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = list(tensors)
        self._addresses = addresses(self.tensors)
        self.runs = [*_runs(self.tensors)]
        self.blocks = [parts for run in self.runs for parts in run.parts]
        self._narrow = [wide_dtype(parts[0].dtype) != parts[0].dtype for parts in self.blocks]
        # Few enough tensors for one small block, whose memory is no matter: what a step costs is calls then.
        self.is_small = self._narrow == [False] and _is_small(self.blocks[0], self.tensors)

    def is_of(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these are the same tensors with the same memory."""
        return (
            len(tensors) == len(self.tensors)
            and all(map(is_, tensors, self.tensors))
            and addresses(tensors) == self._addresses
        )

    def gather(self, block: int, *, wide: bool = False) -> Tensor:
        """The values of a block in new memory, flat where the block is; with ``wide`` in the averaging dtype."""
        parts = self.blocks[block]
        values = torch.cat(parts) if len(parts) > 1 else parts[0].clone()
        return values.to(torch.float32) if wide and self._narrow[block] else values

    def scatter(self, block: int, values: list[Tensor]) -> None:
        """Write the values of a block, a list of one flat tensor, into the model."""
        parts = self.blocks[block]
        if len(parts) == 1:
            parts[0].copy_(values[0], non_blocking=True)
        elif isinstance(values, Block) and values[0].get_device() == parts[0].get_device():
            torch._foreach_copy_(parts, values.pieces, non_blocking=True)
        else:
            near = values[0].to(parts[0].device, non_blocking=True)
            torch._foreach_copy_(parts, cut(near, parts), non_blocking=True)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Layout":
        raise TypeError("views of a model's memory are not copied: lay out the copy")


class Packed(Sequence[Tensor]):
    """Further tensors of the shapes and strides of a layout's: a list of them, and the same memory as flat blocks.

    Args:
        layout: of the model's tensors.
        wide: in the averaging dtype (float32 for 16-bit weights).
        offload: in pinned host memory where the model's are on an accelerator.
    """

    def __init__(self, layout: Layout, *, wide: bool = False, offload: bool = False) -> None:
        self.tensors: list[Tensor] = list(layout.tensors)
        self.blocks: list[Block] = []
        for run in layout.runs:
            self._add(run, layout.tensors, wide, offload)

    def _add(self, run: _Run, model: list[Tensor], wide: bool, offload: bool) -> None:
        first = model[run.at[0]]
        dtype = wide_dtype(first.dtype) if wide else first.dtype
        pinned = offload and first.device.type != "cpu" and type(first) in ORDINARY
        where: dict[str, Any] = {"device": "cpu", "pin_memory": True} if pinned else {"device": first.device}
        if len(run.at) > 1:
            self._add_together(run, torch.empty(sum(map(Tensor.numel, run.parts[0])), dtype=dtype, **where), model)
        elif run.parts[0][0].dim() == 1 and _is_flat(first):
            own = torch.empty_strided(first.size(), first.stride(), dtype=dtype, **where)
            self.tensors[run.at[0]] = own
            self._add_blocks(flat(own).split([parts[0].numel() for parts in run.parts]))
        else:
            own = first.detach().to(dtype=dtype, copy=True)
            self.tensors[run.at[0]] = own.cpu().pin_memory() if pinned else own
            self._add_blocks([local(self.tensors[run.at[0]])])

    def _add_together(self, run: _Run, memory: Tensor, model: list[Tensor]) -> None:
        pieces = list(memory.split([part.numel() for part in run.parts[0]]))
        for i, piece in zip(run.at, pieces, strict=True):
            self.tensors[i] = memory.as_strided(model[i].size(), model[i].stride(), piece.storage_offset())
        self.blocks.append(Block(memory, pieces))

    def _add_blocks(self, blocks: Sequence[Tensor]) -> None:
        self.blocks += [Block(block, [block]) for block in blocks]

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        return self.tensors[index]

    def __len__(self) -> int:
        return len(self.tensors)


def _is_flat(tensor: Tensor) -> bool:
    return type(tensor) in ORDINARY and not tensor.is_complex() and is_dense(tensor)


def addresses(tensors: Sequence[Tensor]) -> list[int]:
    """Where the memory of each begins; a model turned to another device or dtype has other memory under the same parameters."""
    if {*map(type, tensors)} <= ORDINARY:
        return [*map(Tensor.data_ptr, tensors)]
    return [local(t).data_ptr() for t in tensors]


def _runs(tensors: list[Tensor]) -> Iterator[_Run]:
    """Cut a list at whatever cannot lie with its neighbours."""
    views = [flat(t.detach()) if _is_flat(t) else None for t in tensors]
    cuts = [0, *(i for i in range(1, len(tensors)) if _apart(views[i - 1], views[i])), len(tensors)]
    for begin, end in pairwise(cuts):
        yield from _fill(begin, end, views, tensors)


def _is_small(parts: list[Tensor], tensors: list[Tensor]) -> bool:
    ordinary = {*map(type, tensors)} <= ORDINARY and all(part.dim() == 1 for part in parts)
    return ordinary and sum(map(Tensor.numel, parts)) <= SMALL


def _apart(left: Tensor | None, right: Tensor | None) -> bool:
    return left is None or right is None or (left.dtype, left.device) != (right.dtype, right.device)


def _fill(begin: int, end: int, views: list[Tensor | None], tensors: list[Tensor]) -> Iterator[_Run]:
    """Blocks of neighbours that may lie together; a tensor larger than a block alone, in pieces."""
    run, size = _Run([], [[]]), 0
    for i in range(begin, end):
        view = views[i]
        if view is None:
            yield _Run([i], [[local(tensors[i])]])
            continue
        limit = block_size(view.device)
        if run.at and size + view.numel() > limit:
            yield run
            run, size = _Run([], [[]]), 0
        if view.numel() > limit:
            yield _Run([i], [[piece] for piece in view.split(limit)])
            continue
        run.at.append(i)
        run.parts[0].append(view)
        size += view.numel()
    if run.at:
        yield run


def exchange(layout: Layout, other: Packed) -> None:
    """Exchange the model's values with a set of the same dtypes, with one block of temporary memory."""
    for i, block in enumerate(other.blocks):
        kept = layout.gather(i)
        layout.scatter(i, block)
        block[0].copy_(kept, non_blocking=True)


def exchange_small(layout: Layout, other: Packed, spare: Packed) -> None:
    """Write the values of a model that is small into a spare set, and those of another set into the model."""
    torch.cat(layout.blocks[0], out=spare.blocks[0][0])
    torch._foreach_copy_(layout.blocks[0], other.blocks[0].pieces)


def put(layout: Layout, source: Packed) -> None:
    """Write a set into the model."""
    for i, block in enumerate(source.blocks):
        layout.scatter(i, block)


def take(layout: Layout, target: Packed) -> None:
    """Write the model's values into a set, converting the dtype."""
    for parts, (block,) in zip(layout.blocks, target.blocks, strict=True):
        if len(parts) > 1 and (block.dtype, block.device) == (parts[0].dtype, parts[0].device):
            torch.cat(parts, out=block)
        else:
            block.copy_(torch.cat(parts) if len(parts) > 1 else parts[0], non_blocking=True)


def cut(block: Tensor, parts: list[Tensor]) -> list[Tensor]:
    """A block as views of as many elements as each of ``parts`` has."""
    return [block] if len(parts) == 1 else list(block.split([part.numel() for part in parts]))


def finite_sets(layout: Layout, others: Sequence[Packed]) -> list[bool]:
    """Of the model and of each further set, whether nothing in it is infinite or NaN. Waits for the device once.

    A sum is finite only if all that it is of is finite; where one is not, it may be that it is too large for its dtype alone, and a
    closer look decides.
    """
    if not {*map(type, layout.tensors)} <= ORDINARY or not layout.blocks:
        finite = finite_each([t for of in (layout.tensors, *others) for t in of])
        return [all(finite[i : i + len(layout.tensors)]) for i in range(0, len(finite), max(1, len(layout.tensors)))]
    found = _finite(layout, others, torch.sum)
    return found if all(found) else _finite(layout, others, _largest)


def is_finite(block: Tensor) -> bool:
    """Whether nothing in a flat block is infinite or NaN. Waits for the device."""
    return isfinite(block.dot(block).item()) or isfinite(_largest(block).item())


def _finite(layout: Layout, others: Sequence[Packed], measure: Callable[[Tensor], Tensor]) -> list[bool]:
    """Of the model and of each further set, whether a measure of every block in it is finite."""
    measures = [measure(layout.gather(i) if len(of) > 1 else of[0]) for i, of in enumerate(layout.blocks)]
    measures += [measure(block) for other in others for (block,) in other.blocks]
    device, each = measures[0].device, len(layout.blocks)
    if device.type == "cpu":
        numbers = [m.item() for m in measures]
    else:
        numbers = torch.stack([m.to(device, torch.float64) for m in measures]).tolist()
    return [all(map(isfinite, numbers[i : i + each])) for i in range(0, len(numbers), each)]


def _largest(block: Tensor) -> Tensor:
    return torch.linalg.vector_norm(block, float("inf")) if block.numel() else block.new_zeros(())
