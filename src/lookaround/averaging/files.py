"""Reading and writing safetensors files piece by piece.

A safetensors file is the length of a JSON header (8 bytes, little endian), the header, which gives each tensor's dtype,
shape and place, and the tensors' bytes. That is little enough to be read and written here without holding more than a
piece of a tensor.
"""

import ctypes
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any

import torch
from torch import Tensor

from lookaround.files import atomic

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
# Parts of values that are spread over several tensors: as numbers of their own they mean nothing.
_PARTS = {
    "F8_E8M0": "common exponents of blocks of other numbers",
    "F4": "4-bit floats, whose scales stand in another tensor",
    "F6_E2M3": "6-bit floats, whose scales stand in another tensor",
    "F6_E3M2": "6-bit floats, whose scales stand in another tensor",
}
# The format's own limit: a longer header is taken for a file of another kind.
_LONGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class Place:
    """One tensor of a file: its dtype, its shape and where its bytes start and end in the file.

    Attributes:
        strides: Of its elements between ``start`` and ``end``, where they are not in the tensor's own order.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int
    strides: tuple[int, ...] | None = None


def byte_view(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, for reading into it and writing from it without a copy."""
    size = tensor.numel() * tensor.element_size()
    return memoryview((ctypes.c_char * size).from_address(tensor.data_ptr())).cast("B") if size else memoryview(b"")


def read_header(path: str | PathLike[str]) -> tuple[dict[str, Place], dict[str, str]]:
    """The tensors of a safetensors file in the order of their bytes, and the file's metadata.

    Raises:
        ValueError: The file is no safetensors file, is cut short, or damaged; or it holds a dtype that is not known, or whose
            numbers mean nothing without those of another tensor (4-bit floats, block scales).
        OSError: The file cannot be read.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _LONGEST_HEADER):
            raise ValueError(f"{fspath(path)} is not a safetensors file, or was cut short")
        raw = file.read(length)
    try:
        header = json.loads(raw.decode(), object_pairs_hook=_unique)
        metadata = _strings(header.pop("__metadata__", {}))
        places = {name: _place(name, entry, 8 + length) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = error if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise ValueError(f"{fspath(path)} has a safetensors header that cannot be read: {reason}") from error
    ordered = dict(sorted(places.items(), key=lambda item: (item[1].start, item[1].end)))
    _check_places(fspath(path), ordered, 8 + length, size)
    return ordered, metadata


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands in it twice")
    return found


def _strings(metadata: Any) -> dict[str, str]:
    if not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("__metadata__ must map strings to strings")
    return dict(metadata)


def _place(name: str, entry: Mapping[str, Any], offset: int) -> Place:
    dtype = entry["dtype"]
    if dtype in _PARTS:
        raise ValueError(
            f"{name!r} has dtype {dtype}: {_PARTS[dtype]}, which cannot be averaged; dequantise the model first"
        )
    if dtype not in _DTYPES:
        raise ValueError(f"{name!r} has dtype {dtype!r}, which is not known")
    begin, end = _counts(name, entry["data_offsets"])
    return Place(_DTYPES[dtype], _counts(name, entry["shape"]), offset + begin, offset + end)


def _counts(name: str, values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(n) is int and n >= 0 for n in values):
        raise ValueError(f"the shape or place of {name!r} is {values!r}, which are not counts")
    return tuple(values)


def _check_places(path: str, places: Mapping[str, Place], start: int, size: int) -> None:
    """The tensors' bytes have to follow each other without gaps to the end of the file, as the format demands."""
    position = start
    for name, place in places.items():
        if place.end > size or place.end - place.start != math.prod(place.shape) * place.dtype.itemsize:
            raise ValueError(f"{path} is damaged: the bytes of {name!r} do not fit its shape or the file")
        if place.start != position:
            raise ValueError(f"{path} is damaged: {name!r} overlaps the tensor before it, or leaves a gap")
        position = place.end
    if position != size:
        raise ValueError(f"{path} is damaged: {size - position} bytes at its end belong to no tensor")


def header_bytes(
    layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, Place]]:
    """The first bytes of a safetensors file whose tensors follow in the order of ``layout``, and each tensor's place.

    The header is padded so that the data starts at a multiple of 8. ``layout`` should go from large dtypes to small
    ones (:func:`aligned`), so that every tensor is aligned.

    Raises:
        ValueError: A dtype has no name in the format.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offsets, position = {}, 0
    for name, (dtype, shape) in layout.items():
        if dtype not in _NAMES:
            raise ValueError(f"{name!r} has dtype {dtype}, which the safetensors format does not know")
        end = position + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [position, end]}
        offsets[name], position = (position, end), end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    places = {n: Place(*layout[n], start + a, start + b) for n, (a, b) in offsets.items()}
    return len(text).to_bytes(8, "little") + text, places


def aligned(
    layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """``layout`` from large dtypes to small ones, otherwise in its order."""
    return dict(sorted(layout.items(), key=lambda item: -item[1][0].itemsize))


def save_tensors(path: str | PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write ``tensors`` as a safetensors file, atomically, with at most one tensor copied at a time.

    Raises:
        ValueError: A dtype has no name in the format.
        OSError: The file cannot be written; what was at ``path`` is still there.
    """
    layout = aligned({name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()})
    head, _ = header_bytes(layout, metadata)
    with atomic(path, sync=True) as temporary, open(temporary, "wb") as file:
        file.write(head)
        for name in layout:
            here = tensors[name].detach().cpu().contiguous()
            file.write(byte_view(here))
