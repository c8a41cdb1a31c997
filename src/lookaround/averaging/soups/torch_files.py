"""Where the tensors of a ``torch.save`` file stand in it, so that they can be read piece by piece like those of safetensors.

Since PyTorch 1.6 such a file is an uncompressed zip archive: a pickle that names storages, and a record for each of them. Before,
it was a row of pickles, then each storage's count and bytes. Both are read here, within bounds, since a file may be damaged.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from os import PathLike, fspath, fstat
from typing import Any, BinaryIO

from lookaround.averaging.files import Place
from lookaround.averaging.soups.archives import ZIP, Archive
from lookaround.averaging.soups.pickles import Named, Storage, StoredTensor, unpickle, unpickle_bytes

# The number 0x1950a86a20f9469cfc6c, which is the first of the pickles, within the file's first bytes.
BEFORE_1_6 = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
# What a tensor may take that says its elements over and over again (`expand`), where the file is smaller: the count may be damaged.
_MOST_REPEATED = 2**26

_Locate = Callable[[Storage], int]


def read_torch_file(path: str | PathLike[str]) -> dict[str, Place]:
    """The tensors of a state dict saved by ``torch.save``, by name, in the order of the dict. Nothing in the file is run.

    Raises:
        ValueError: It is damaged, compressed, of a machine with other byte order, or holds tensors that cannot be averaged.
        TypeError: It holds something else than a mapping of names to tensors.
        OSError: The file cannot be read.
    """
    name = fspath(path)
    with open(path, "rb") as file:
        size = fstat(file.fileno()).st_size
        try:
            held, locate = _of_zip(file) if file.peek(4)[:4] == ZIP else _before_1_6(file, size)
            tensors = _named_tensors(held, name)
            return {key: _place(tensor, locate, size) for key, tensor in tensors.items()}
        except ValueError as error:
            raise ValueError(f"{name} is no checkpoint that can be read: {error}") from error


def _named_tensors(held: Any, name: str) -> Mapping[str, StoredTensor]:
    if not isinstance(held, dict) or not held:
        raise TypeError(
            f"{name} must map names to tensors, but holds {_described(held)}; save the model's state_dict() alone"
        )
    strange = next(
        (key for key, value in held.items() if not isinstance(value, StoredTensor) or not isinstance(key, str)), None
    )
    if strange is None:
        return held
    if str(strange).endswith("_extra_state"):
        raise TypeError(
            f"{name} holds {strange!r}, which is {_described(held[strange])} and no tensor; load the files with torch.load and "
            f"average the state dicts, or leave it out"
        )
    keys = ", ".join(map(str, list(held)[:5]))
    raise TypeError(
        f"{name} must map names to tensors, but holds the keys {keys}, and {strange!r} is {_described(held[strange])}; "
        f"save the model's state_dict() alone"
    )


def _described(value: Any) -> str:
    return value.name if isinstance(value, Named) else type(value).__name__


def _of_zip(file: BinaryIO) -> tuple[Any, _Locate]:
    archive = Archive(file)
    pickled = next((n for n in archive.names if n.rpartition("/")[2] == "data.pkl"), None)
    if pickled is None:
        raise ValueError("it is a zip archive without a pickle; was it saved by torch.save?")
    folder = pickled.removesuffix("data.pkl")
    if folder + "byteorder" in archive and archive.read(folder + "byteorder") != b"little":
        raise ValueError("it was saved on a machine of other byte order")

    def locate(storage: Storage) -> int:
        name = f"{folder}data/{storage.key}"
        if archive.size(name) != storage.count * storage.dtype.itemsize:
            raise ValueError(f"storage {storage.key} has {archive.size(name):,} bytes, which its tensors do not have")
        return archive.start(name)

    return unpickle_bytes(archive.read(pickled)), locate


def _before_1_6(file: BinaryIO, size: int) -> tuple[Any, _Locate]:
    _number, _protocol, system, held = (unpickle(file) for _ in range(4))
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("it was saved on a machine of other byte order")
    keys = [str(key) for key in _listed(unpickle(file))]
    begin = file.tell()
    starts: dict[str, int] = {}

    def locate(storage: Storage) -> int:
        if not starts:
            file.seek(begin)
            starts.update(_storages(file, keys, {t.storage.key: t.storage for t in held.values()}, size))
        if storage.key not in starts:
            raise ValueError(f"its storage {storage.key} is missing")
        return starts[storage.key]

    return held, locate


def _storages(file: BinaryIO, keys: list[str], storages: Mapping[str, Storage], size: int) -> Iterator[tuple[str, int]]:
    """Where each storage's bytes begin: after their count, one storage after another."""
    for key in keys:
        if key not in storages:
            raise ValueError(f"nothing says how large storage {key} is")
        count, here = _count(file), file.tell()
        if count != storages[key].count:
            raise ValueError(f"storage {key} has {count:,} elements, which its tensors do not have")
        yield key, here
        file.seek(min(here + count * storages[key].dtype.itemsize, size))


def _count(file: BinaryIO) -> int:
    """How many elements a storage has. None of them are no reason to go without the count: the file may end here."""
    read = file.read(8)
    if len(read) < 8:
        raise ValueError("it is cut short")
    return int.from_bytes(read, "little")


def _listed(keys: Any) -> list[Any]:
    if not isinstance(keys, list):
        raise ValueError("it has no list of storages")
    return keys


def _place(tensor: StoredTensor, locate: _Locate, size: int) -> Place:
    width, count = tensor.dtype.itemsize, math.prod(tensor.shape)
    last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True))
    if count and (last + 1) * width > tensor.storage.count * tensor.storage.dtype.itemsize:
        raise ValueError(f"a tensor of shape {tensor.shape} is larger than its storage {tensor.storage.key}")
    start = locate(tensor.storage) + tensor.offset * width
    end = start + (last + 1 - tensor.offset) * width if count else start
    if end > size:
        raise ValueError(f"a tensor of shape {tensor.shape} ends after the file does: it is cut short")
    if count * width > max(size, _MOST_REPEATED):
        raise ValueError(
            f"a tensor of shape {tensor.shape} and {count * width:,} bytes is an expanded view of {end - start:,}: save it as contiguous() "
            "makes it"
        )
    return Place(tensor.dtype, tensor.shape, start, end, None if _in_order(tensor) else tensor.strides)


def _in_order(tensor: StoredTensor) -> bool:
    """Whether the elements stand one after another, as a contiguous tensor's do."""
    step = 1
    for n, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if n != 1 and stride != step:
            return math.prod(tensor.shape) == 0
        step *= n
    return True
