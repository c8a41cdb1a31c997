"""The ingredients of a soup as named tensors that are read when they are needed: those in memory, and those in files."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lookaround.averaging.files import Place, byte_view
from lookaround.averaging.soups.dtypes import check_dtype
from lookaround.averaging.soups.stored import StoredFile

Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]


class Source(ABC):
    """The named tensors of one ingredient.

    Attributes:
        name: For messages.
        layout: Dtype and shape of each tensor, tied ones under each of their names.
        ties: For the names under which a tensor of another name can be reached: that name.
        metadata: Strings that a file holds beside its tensors.
        extras: What a state dict holds beside tensors: modules' extra states.
    """

    name: str
    layout: Layout
    ties: Mapping[str, str]
    metadata: Mapping[str, str]
    extras: Mapping[str, Any]

    @abstractmethod
    def tensor(self, name: str) -> Tensor:
        """One whole tensor; the caller must not write to it."""

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors with their names, one after another."""
        return ((name, self.tensor(name)) for name in self.layout)

    @abstractmethod
    def close(self) -> None:
        """Let go of what is held."""

    def _check(self) -> None:
        for name, (dtype, _) in self.layout.items():
            check_dtype(name, dtype, self.name)


class MemorySource(Source):
    """The tensors of a mapping. Nothing is copied."""

    def __init__(self, name: str, tensors: Mapping[str, Tensor], extras: Mapping[str, Any]) -> None:
        self.name, self.metadata, self.extras = name, {}, extras
        self._held = {key: _plain(key, value, name) for key, value in tensors.items()}
        self.layout = {key: (value.dtype, tuple(value.shape)) for key, value in self._held.items()}
        self.ties = _ties({key: _memory_of(key, value) for key, value in self._held.items()})
        self._check()

    def tensor(self, name: str) -> Tensor:
        """The tensor itself."""
        return self._held[name]

    def close(self) -> None:
        """Let go of the tensors."""
        self._held = {}


def _plain(key: str, tensor: Tensor, where: str) -> Tensor:
    if tensor.layout is not torch.strided:
        raise ValueError(f"{where}: {key!r} is sparse ({tensor.layout}); give it as to_dense() makes it")
    plain = tensor.detach()
    return plain.resolve_conj().resolve_neg() if plain.is_conj() or plain.is_neg() else plain


def _memory_of(name: str, tensor: Tensor) -> object:
    """What tells tied tensors: where their elements are. Tensors that hold nothing, or no memory of their own, are never tied."""
    if type(tensor) is not Tensor or not tensor.numel() or tensor.is_meta:
        return name
    return tensor.device, tensor.dtype, tensor.data_ptr(), tuple(tensor.shape), tensor.stride()


def _ties(where: Mapping[str, object]) -> dict[str, str]:
    first: dict[object, str] = {}
    return {name: kept for name, place in where.items() if (kept := first.setdefault(place, name)) != name}


def common_ties(sources: Sequence[Source]) -> dict[str, str]:
    """The names of all tensors, each with the first name that is tied to it in every source: itself, mostly."""
    first: dict[tuple[str, ...], str] = {}
    return {
        name: first.setdefault(tuple(source.ties.get(name, name) for source in sources), name)
        for name in sources[0].layout
    }


class FileSource(Source):
    """The tensors of one file, or of a folder's several files, read piece by piece. Threads may share it.

    Args:
        name: Of the file or the folder.
        parts: The files and where the tensors stand in them.
        metadata: What stands in the files beside them.
        aliases: Further names of tensors, with the names they stand under.
    """

    def __init__(
        self,
        name: str,
        parts: Sequence[tuple[StoredFile, Mapping[str, Place]]],
        metadata: Mapping[str, str],
        aliases: Mapping[str, str],
    ) -> None:
        self.name, self.extras = name, {}
        self.files = [file for file, _ in parts]
        self._held = {key: (file, place) for file, places in parts for key, place in places.items()}
        self._held |= {alias: self._held[kept] for alias, kept in aliases.items()}
        self.layout = {key: (place.dtype, place.shape) for key, (_, place) in self._held.items()}
        self.ties = _ties({key: _bytes_of(key, *held) for key, held in self._held.items()})
        self.metadata = {key: text for key, text in metadata.items() if key not in aliases}
        self._check()

    def place(self, name: str) -> tuple[StoredFile, Place]:
        """The file that holds a tensor, and where."""
        return self._held[name]

    def order(self) -> list[str]:
        """The tensors' names in the order of their bytes."""
        number = {id(file): index for index, file in enumerate(self.files)}
        return sorted(self._held, key=lambda name: (number[id(self._held[name][0])], self._held[name][1].start))

    def tensor(self, name: str) -> Tensor:
        """One tensor, in new memory."""
        file, place = self._held[name]
        if place.strides is None:
            tensor = torch.empty(place.shape, dtype=place.dtype)
            file.read_into(byte_view(tensor), place.start)
            return tensor
        stretch = torch.empty((place.end - place.start) // place.dtype.itemsize, dtype=place.dtype)
        file.read_into(byte_view(stretch), place.start)
        return stretch.as_strided(place.shape, place.strides).contiguous()

    def rest(self) -> None:
        """Close a folder's files until they are read again; a single file stays open, and is read whatever takes its place."""
        for file in self.files if len(self.files) > 1 else ():
            file.rest()

    def close(self) -> None:
        """Close the files."""
        for file in self.files:
            file.rest()


def _bytes_of(name: str, file: StoredFile, place: Place) -> object:
    return name if place.start == place.end else (id(file), place)
