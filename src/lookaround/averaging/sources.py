"""Where the ingredients of a soup come from: models and state dicts in memory, safetensors files, ``torch.save`` files."""

import hashlib
import pickle
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from io import FileIO
from os import PathLike, fspath

import torch
from torch import Tensor, nn

from lookaround.averaging.files import Place, byte_view, read_header
from lookaround.averaging.slots import find_slots, require_equal

Ingredient = nn.Module | Mapping[str, Tensor] | str | PathLike[str]
Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]


class Source(ABC):
    """The named tensors of one ingredient, read when they are needed.

    Attributes:
        piecewise: Whether one tensor can be read without reading all the others.
    """

    name: str
    layout: Layout
    metadata: Mapping[str, str]
    piecewise = True

    @abstractmethod
    def tensor(self, name: str) -> Tensor:
        """One whole tensor; the caller must not write to it."""

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors with their names, one after another."""
        return ((name, self.tensor(name)) for name in self.layout)

    @abstractmethod
    def close(self) -> None:
        """Let go of the file, if there is one."""


class MemorySource(Source):
    """The tensors of a mapping. Nothing is copied."""

    def __init__(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        self.name = name
        self._held = {key: value.detach() for key, value in tensors.items()}
        self.layout = _layout(self._held)
        self.metadata = {}

    def tensor(self, name: str) -> Tensor:
        """The tensor itself."""
        return self._held[name]

    def close(self) -> None:
        """Let go of the tensors."""
        self._held = {}


class WholeFileSource(Source):
    """A ``torch.save`` file as PyTorch wrote it before 1.6, which can only be loaded whole.

    It is loaded once for its layout and once for each round of :meth:`tensors`, and held during that round alone.
    """

    piecewise = False

    def __init__(self, path: str | PathLike[str]) -> None:
        self.name = fspath(path)
        self.layout = _layout(self._load())
        self.metadata = {}

    def _load(self) -> Mapping[str, Tensor]:
        return _flat(_torch_load(self.name, mapped=False), self.name)

    def tensor(self, name: str) -> Tensor:
        """One tensor, for which the whole file is loaded."""
        return self._load()[name].detach()

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors of one loading."""
        yield from ((name, value.detach()) for name, value in self._load().items())

    def close(self) -> None:
        """Nothing is held."""


class SafetensorsSource(Source):
    """A safetensors file, read piece by piece, and hashed while it is read in order. Threads may share it."""

    def __init__(self, path: str | PathLike[str]) -> None:
        self.name = fspath(path)
        self.places, self.metadata = read_header(path)
        self.layout = {key: (place.dtype, place.shape) for key, place in self.places.items()}
        self._file = FileIO(path)
        self._turn = threading.Condition()
        self._hash = hashlib.sha256()
        self._hashed: int | None = None
        self._broken = False

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def tensor(self, name: str) -> Tensor:
        """One tensor, in new memory."""
        place = self.places[name]
        tensor = torch.empty(place.shape, dtype=place.dtype)
        self.read_into(tensor, place.start)
        return tensor

    def read_into(self, target: Tensor, offset: int) -> None:
        """Fill a contiguous CPU tensor with the bytes from ``offset`` on; once hashing has begun, calls wait for their
        turn.

        Raises:
            ValueError: The file has become shorter.
        """
        view = byte_view(target)
        with self._turn:
            self._turn.wait_for(lambda: self._broken or self._hashed in (None, offset))
            self._file.seek(offset)
            filled = 0
            while filled < len(view):
                got = self._file.readinto(view[filled:])
                if not got:
                    raise ValueError(f"{self.name} ended while it was read")
                filled += got
            if self._hashed is not None:
                self._hash.update(view)
                self._hashed += len(view)
                self._turn.notify_all()

    def hash_in_order(self, places: Sequence[Place]) -> None:
        """Hash what is read from now on, if ``places``, the order of reading, is that of the bytes in the file."""
        start = min((p.start for p in places), default=0)
        position = start
        for place in places:
            if place.start != position:
                return
            position = place.end
        head = torch.empty(start, dtype=torch.uint8)
        self.read_into(head, 0)
        self._hash.update(byte_view(head))
        self._hashed = start

    def give_up(self) -> None:
        """Let no one wait for a turn any longer: a reader has failed."""
        with self._turn:
            self._broken = True
            self._turn.notify_all()

    def digest(self) -> str:
        """The SHA-256 of the whole file: of what was hashed on the way and what follows it."""
        self._file.seek(self._hashed or 0)
        while piece := self._file.read(2**20):
            self._hash.update(piece)
        return self._hash.hexdigest()


def open_source(ingredient: Ingredient, index: int) -> Source:
    """The source for an ingredient of any kind.

    Raises:
        TypeError: The ingredient, or what a file holds, is no set of named tensors.
        ValueError: A file cannot be understood.
        OSError: A file cannot be read.
    """
    if isinstance(ingredient, nn.Module):
        tensors = {alias: slot.tensor for slot in find_slots(ingredient) for alias in slot.aliases}
        return MemorySource(f"model {index}", tensors)
    if isinstance(ingredient, Mapping):
        return MemorySource(f"state dict {index}", _flat(ingredient, f"state dict {index}"))
    if not isinstance(ingredient, (str, PathLike)):
        raise TypeError(f"an ingredient is a model, a state dict or a path, got {type(ingredient).__name__}")
    if fspath(ingredient).endswith(".safetensors"):
        return SafetensorsSource(ingredient)
    with open(ingredient, "rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    if not zipped:
        return WholeFileSource(ingredient)
    # Mapped, tensors are read when they are used, and memory holds no more than those.
    return MemorySource(fspath(ingredient), _flat(_torch_load(ingredient, mapped=True), fspath(ingredient)))


def _torch_load(path: str | PathLike[str], *, mapped: bool) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{fspath(path)} is no checkpoint that torch.load(weights_only=True) reads: {reason}"
        ) from error


def _layout(tensors: Mapping[str, Tensor]) -> Layout:
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def _flat(values: object, name: str) -> Mapping[str, Tensor]:
    if isinstance(values, Mapping) and values and all(isinstance(v, Tensor) for v in values.values()):
        return values
    held = f"the keys {', '.join(map(str, list(values)[:5]))}" if isinstance(values, Mapping) else type(values).__name__
    raise TypeError(f"{name} must map names to tensors, but holds {held}; save the model's state_dict() alone")


@contextmanager
def open_sources(ingredients: Sequence[Ingredient]) -> Iterator[list[Source]]:
    """All ingredients, checked to have the same names, shapes and dtypes; closed at the end.

    Raises:
        ValueError: There are none, or they differ; the message lists the differences.
    """
    if not ingredients:
        raise ValueError("a soup needs at least one ingredient")
    with ExitStack() as stack:
        sources: list[Source] = []
        for index, ingredient in enumerate(ingredients):
            sources.append(open_source(ingredient, index))
            stack.callback(sources[-1].close)
        for source in sources[1:]:
            require_equal(
                _described(sources[0]), _described(source), f"{source.name} and {sources[0].name}: the former"
            )
        yield sources


def _described(source: Source) -> dict[str, str]:
    return {name: f"{dtype} {shape}" for name, (dtype, shape) in source.layout.items()}
