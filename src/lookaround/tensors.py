"""In-place arithmetic on lists of tensors: the only place where weights are added, averaged, copied or exchanged.

Every function takes lists that run in parallel (the i-th tensors of all lists have one shape), walks them in blocks that stay in
the processor's cache, and needs no temporary larger than a block. So an average of several lists reads each weight from memory
once and writes it once, whatever the number of operations in between.

Averages are formed in at least float32: a bfloat16 or float16 list is widened block by block. Complex tensors are treated as pairs
of reals and DTensors as their local shards, since averaging is element by element.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import attrgetter

import torch
from torch import Tensor

Tensors = Sequence[Tensor]

# Elements of one block. 2**18 float32 values are a megabyte a list, half of it each of two cores: the lists of an average fit their caches.
_CPU_BLOCK = 2**18
# An accelerator needs work enough to fill it, and its temporaries are what this bounds.
_DEVICE_BLOCK = 2**24
# What has no memory but its own, in one piece: no subclass, such as a DTensor.
ORDINARY = {Tensor, torch.nn.Parameter}


def block_size(device: torch.device) -> int:
    """The elements of one block on a device."""
    return _CPU_BLOCK if device.type == "cpu" else _DEVICE_BLOCK


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype an average is kept in: ``dtype`` itself, but float32 for the 8- and 16-bit floating types.

    >>> import torch
    >>> from lookaround.tensors import wide_dtype
    >>> wide_dtype(torch.bfloat16), wide_dtype(torch.float64)
    (torch.float32, torch.float64)
    """
    return torch.float32 if dtype.is_floating_point and dtype.itemsize < 4 else dtype


def local(tensor: Tensor) -> Tensor:
    """The part of ``tensor`` this process holds, as a plain real tensor that shares its memory and its version counter."""
    tensor = tensor.detach()
    if hasattr(tensor, "to_local"):
        tensor = tensor.to_local()
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def reshard(module: torch.nn.Module) -> None:
    """Give a module sharded by FSDP2 its sharded parameters back where a forward pass without a backward has left gathered ones.

    Gathered copies are not what an optimizer holds, and what is written into the shards does not reach them. Nothing is
    communicated; the next forward pass gathers again. Other modules are left alone.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    for part in module.modules() if fsdp else ():
        if isinstance(part, fsdp.FSDPModule):  # type: ignore[union-attr]
            part.reshard()


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one stretch of memory, in whatever order of the dimensions (channels-last does)."""
    return tensor.is_contiguous() or tensor.is_contiguous(memory_format=torch.channels_last)


def flat(tensor: Tensor) -> Tensor:
    """The elements of a dense tensor in the order of its memory, as a view of one dimension."""
    return tensor.as_strided((tensor.numel(),), (1,))


def _is_plain(tensors: list[Tensor]) -> bool:
    """Whether a list can be used as it is: ordinary real tensors of one dtype on one device. Quick, as it looks at every tensor."""
    if not {*map(type, tensors)} <= ORDINARY:
        return False
    dtypes, devices = {*map(attrgetter("dtype"), tensors)}, {*map(Tensor.get_device, tensors)}
    return len(dtypes) == len(devices) == 1 and not tensors[0].is_complex()


def _alike(lists: list[list[Tensor]]) -> Iterator[list[list[Tensor]]]:
    """Cut parallel lists where a dtype or a device changes, with every tensor made `local`.

    All lists decide: a model turned to another dtype after an average was made of it may have one dtype where the average has two.
    """
    if all(map(_is_plain, lists)):
        yield lists
        return
    rows = [[local(t) for t in row] for row in zip(*lists, strict=True)]
    for _, run in groupby(rows, key=lambda row: [(t.dtype, t.device) for t in row]):
        yield [list(column) for column in zip(*run, strict=True)]


def _runs(sizes: list[int], limit: int) -> Iterator[tuple[int, int]]:
    """Ranges of consecutive tensors of at most ``limit`` elements together; a larger tensor stands alone."""
    if sum(sizes) <= limit:
        yield 0, len(sizes)
        return
    begin = total = 0
    for index, size in enumerate(sizes):
        if total + size > limit and index > begin:
            yield begin, index
            begin, total = index, 0
        total += size
    yield begin, len(sizes)


def _pieces(row: list[Tensor], size: int) -> Iterator[tuple[list[Tensor], ...]]:
    """Cut parallel large tensors into views of ``size`` elements; those that cannot be cut alike stay whole."""
    if all(is_dense(t) and t.stride() == row[0].stride() for t in row):
        yield from (
            tuple([piece] for piece in pieces) for pieces in zip(*(flat(t).split(size) for t in row), strict=True)
        )
    else:
        yield tuple([t] for t in row)


def blocks(*lists: Tensors, cut: bool = True, least: int = 0) -> Iterator[tuple[list[Tensor], ...]]:
    """Walk parallel lists block by block: each yield holds, for every list, views of the same elements.

    Small tensors are put together and large ones are cut, so that a block has about as many elements as fit the cache. All tensors
    of a block share a device and, within each list, a dtype. To be used under `torch.no_grad`.

    With ``cut=False`` nothing is bounded: for a single operation, which uses every value once and so gains nothing from the cache.
    ``least`` elements a block has room for at least: for operations that cost something each, such as sending it.

    >>> import torch
    >>> from lookaround.tensors import blocks
    >>> [len(block) for (block,) in blocks([torch.zeros(2), torch.zeros(3)])]
    [2]
    """
    if len({len(tensors) for tensors in lists}) > 1:
        raise ValueError(f"the lists have to be of one length, got {[len(tensors) for tensors in lists]}")
    for alike in _alike([list(tensors) for tensors in lists]) if lists[0] else ():
        if not cut:
            yield tuple(alike)
            continue
        sizes = [*map(Tensor.numel, alike[0])]
        limit = max(least, block_size(alike[0][0].device))
        for begin, end in _runs(sizes, limit):
            if sizes[begin] > limit:
                yield from _pieces([tensors[begin] for tensors in alike], limit)
            else:
                yield tuple(tensors[begin:end] for tensors in alike)


def _copy_block(targets: list[Tensor], sources: list[Tensor]) -> None:
    torch._foreach_copy_(targets, sources, non_blocking=True)


@torch.no_grad()
def copy_(targets: Tensors, sources: Tensors) -> None:
    """Write ``sources`` into ``targets``, converting dtype and device. Copies from and to pinned memory do not block.

    >>> import torch
    >>> from lookaround.tensors import copy_
    >>> a, b = [torch.zeros(2)], [torch.tensor([1.0, 2.0])]
    >>> copy_(a, b); a
    [tensor([1., 2.])]
    """
    for target, source in zip(targets, sources, strict=True):
        target.detach().copy_(source.detach(), non_blocking=True)


def clone(tensors: Tensors, *, wide: bool = False) -> list[Tensor]:
    """New tensors with the values, layout, device and (unless ``wide``) dtype of ``tensors``, outside any autograd graph.

    With ``wide``, low-precision floating tensors are cloned into float32, the precision averages are kept in.
    """
    dtypes = [wide_dtype(t.dtype) if wide else t.dtype for t in tensors]
    return [t.detach().to(dtype=d, copy=True) for t, d in zip(tensors, dtypes, strict=True)]


@torch.no_grad()
def lerp_each_(averages: Sequence[Tensors], sources: Tensors, weights: Sequence[float]) -> None:
    """average ← average + weight (source - average) for several averages at once, from one pass over ``sources``.

    Each average has its own weight; 1 copies the source, whatever the average held (NaN too). Averages are lists in the averaging
    dtype (:func:`wide_dtype`) on any device: the arithmetic is done where the sources are, so an average in pinned host memory
    is fetched and written back block by block, without waiting.

    >>> import torch
    >>> from lookaround.tensors import lerp_each_
    >>> fast, slow = [torch.zeros(1)], [torch.zeros(1)]
    >>> lerp_each_([fast, slow], [torch.ones(1)], [1.0, 0.25]); (fast, slow)
    ([tensor([1.])], [tensor([0.2500])])
    """
    used_once = len(averages) == 1 and all(a.dtype == s.dtype for a, s in zip(averages[0], sources, strict=True))
    for now, *means in blocks(sources, *averages, cut=not used_once):
        for mean, weight in zip(means, weights, strict=True):
            _pull_block(mean, now, weight)


def _pull_block(mean: list[Tensor], now: list[Tensor], weight: float) -> None:
    if weight == 1:
        _copy_block(mean, now)
        return
    near = mean if mean[0].device == now[0].device else [t.to(now[0].device, non_blocking=True) for t in mean]
    if now[0].dtype != near[0].dtype:
        now = [t.to(near[0].dtype) for t in now]
    torch._foreach_lerp_(near, now, weight)
    if near is not mean:
        _copy_block(mean, near)


@torch.no_grad()
def weighted_sum(values: Iterable[Tensor], weights: Sequence[float]) -> Tensor:
    """Σ w_i v_i of tensors of one shape, in the dtype of the averages; formed in double precision, one value after another.

    >>> import torch
    >>> from lookaround.tensors import weighted_sum
    >>> weighted_sum([torch.tensor([1.0]), torch.tensor([3.0])], [2.0, -1.0])
    tensor([-1.])
    """
    total, dtype = None, torch.float32
    for value, weight in zip(values, weights, strict=True):
        dtype = wide_dtype(value.dtype)
        wide = value.to(torch.complex128 if value.is_complex() else torch.float64)
        total = wide * weight if total is None else total.add_(wide, alpha=weight)
    if total is None:
        raise ValueError("a sum needs at least one value")
    return total.to(dtype)


def all_finite(tensors: Tensors) -> bool:
    """Whether no floating-point or complex value is infinite or NaN. Waits for the device once.

    >>> import torch
    >>> from lookaround.tensors import all_finite
    >>> all_finite([torch.ones(2)]), all_finite([torch.tensor(float("nan"))])
    (True, False)
    """
    return all(finite_each(tensors))


@torch.no_grad()
def finite_each(tensors: Tensors) -> list[bool]:
    """Of each tensor, whether no floating-point or complex value in it is infinite or NaN. Waits for the device once.

    >>> import torch
    >>> from lookaround.tensors import finite_each
    >>> finite_each([torch.ones(2), torch.tensor(float("nan")), torch.tensor(1)])
    [True, False, True]
    """
    parts = [local(t) for t in tensors]
    checked = [i for i, t in enumerate(parts) if t.is_floating_point() and t.numel()]
    if not parts or not (checked or any(hasattr(t, "device_mesh") for t in tensors)):
        return [True] * len(parts)
    device = parts[0].device
    found = torch._foreach_norm([parts[i] for i in checked], float("inf")) if checked else []
    dtype = torch.float64 if any(n.dtype is torch.float64 for n in found) else torch.float32
    norms = [torch.zeros((), device=device, dtype=dtype)] * len(parts)
    for i, norm in zip(checked, found, strict=True):
        norms[i] = norm.to(device, dtype)
    answers: list[bool] = _agreed(torch.stack(norms).isfinite(), tensors).tolist()
    return answers


def _agreed(finite: Tensor, tensors: Tensors) -> Tensor:
    """True where it is true on every process of the mesh the tensors are spread over, so that all of them go on alike."""
    mesh = next((t.device_mesh for t in tensors if hasattr(t, "device_mesh")), None)
    if mesh is None:
        return finite
    answer = finite.int()
    for dimension in range(mesh.ndim):
        torch.distributed.all_reduce(answer, torch.distributed.ReduceOp.MIN, group=mesh.get_group(dimension))
    return answer.bool()


@torch.no_grad()
def dot(first: Tensors, second: Tensors) -> Tensor:
    """The inner product ⟨first, second⟩ over all elements, a 0-dim float64 tensor on the first tensor's device.

    >>> import torch
    >>> from lookaround.tensors import dot
    >>> dot([torch.tensor([1.0, 2.0])], [torch.tensor([3.0, 4.0])])
    tensor(11., dtype=torch.float64)
    """
    total = torch.zeros((), dtype=torch.float64, device=local(first[0]).device if first else None)
    for ours, theirs in blocks(first, second):
        for a, b in zip(ours, theirs, strict=True):
            total += (a.double() * b.double()).sum().to(total.device)
    return total
