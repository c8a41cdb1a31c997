"""Writing a soup: the header first, the tensors as they are made, and the recipe when the ingredients' hashes are known."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path

from lookaround.averaging.files import aligned, header_bytes
from lookaround.averaging.soups.cook import Cook, Progress, write_at
from lookaround.averaging.soups.outputs import (
    copy_description,
    cut,
    goes_to_a_folder,
    is_soup,
    shard_names,
    size_of,
    write_index,
)
from lookaround.averaging.soups.recipe import METADATA_KEY, RecipeLine, as_json, common_metadata, with_hashes
from lookaround.averaging.soups.sources import FileSource, Layout, common_ties
from lookaround.files import atomic, atomic_folder

Pulls = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Order:
    """What is to be made, of ingredients that have been opened and checked.

    Attributes:
        sources: The ingredients; integers are copied from the first.
        recipe: What the soup says of them, with room for the hashes if there are to be any.
        pulls: For each tensor, the weight with which each source pulls the running mean of those before it.
        hashes: Whether the ingredients' hashes are wanted.
        notes: Further metadata.
    """

    sources: Sequence[FileSource]
    recipe: Sequence[RecipeLine]
    pulls: Pulls
    hashes: bool
    notes: Mapping[str, str]


class _Kitchen:
    """An order on its way into files."""

    def __init__(self, order: Order, progress: Progress | None) -> None:
        self.order = order
        self.ties, self.layout = _to_write(order.sources)
        self.cook = Cook(order.sources, order.pulls, progress, size_of(self.layout))
        if order.hashes:
            hash_on_the_way(order.sources, list(self.layout))

    def file(self, path: Path, names: Sequence[str], *, whole: bool) -> list[RecipeLine]:
        """Write one file; the whole soup's has the recipe in its metadata, in which the hashes are filled in at the end."""
        layout = aligned({name: self.layout[name] for name in names})
        head, places = header_bytes(layout, self._metadata(names, self.order.recipe if whole else None))
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o666)
        try:
            write_at(file, memoryview(head), 0)
            self.cook.write(file, names, places)
            recipe = self.recipe() if whole else []
            if whole:
                write_at(file, memoryview(header_bytes(layout, self._metadata(names, recipe))[0]), 0)
        finally:
            os.close(file)
        return recipe

    def recipe(self) -> list[RecipeLine]:
        """The recipe, with hashes if they are wanted, once everything has been read."""
        order = self.order
        return with_hashes(order.sources, order.recipe) if order.hashes else list(order.recipe)

    def _metadata(self, names: Sequence[str], recipe: Sequence[RecipeLine] | None) -> dict[str, str]:
        here = set(names)
        aliases = {name: kept for name, kept in self.ties.items() if kept in here and name != kept}
        listed = {METADATA_KEY: as_json(recipe), **self.order.notes} if recipe is not None else {}
        return {"format": "pt", **listed, **common_metadata(self.order.sources), **aliases}

    def folder(self, folder: Path, shards: Sequence[Sequence[str]]) -> list[RecipeLine]:
        """Write a file for each of the shards, an index if there are several, and the first ingredient's description."""
        copy_description(self.order.sources[0], folder)
        files = dict(zip(shard_names(len(shards)), shards, strict=True))
        if len(shards) == 1:
            return [line for file, names in files.items() for line in self.file(folder / file, names, whole=True)]
        for file, names in files.items():
            self.file(folder / file, names, whole=False)
        recipe = self.recipe()
        notes = {key: json.loads(text) for key, text in self.order.notes.items()}
        write_index(folder, files, size_of(self.layout), {METADATA_KEY: json.loads(as_json(recipe)), **notes})
        return recipe


def _to_write(sources: Sequence[FileSource]) -> tuple[dict[str, str], Layout]:
    """What is tied in all ingredients, and the layout of a soup that holds each tensor once, in the first one's order."""
    ties = common_ties(sources)
    kept = set(ties.values())
    return ties, {name: sources[0].layout[name] for name in sources[0].order() if name in kept}


def planned_files(out: str | PathLike[str], sources: Sequence[FileSource], shard_size: int | None) -> dict[str, int]:
    """The files that :func:`write` would make, with the bytes of the tensors in each.

    Raises:
        ValueError: Shards are asked for in a file.
    """
    _, layout = _to_write(sources)
    if not goes_to_a_folder(out, sources[0], shard_size):
        return {fspath(out): size_of(layout)}
    shards = cut(layout, sources[0], shard_size)
    files = zip(shard_names(len(shards)), shards, strict=True)
    return {fspath(Path(out) / file): size_of({name: layout[name] for name in names}) for file, names in files}


def hash_on_the_way(sources: Sequence[FileSource], names: Sequence[str]) -> None:
    """From now on hash what is read of each file, if ``names``, the order of reading, is the order in the file."""
    for source in sources:
        places = [source.place(name) for name in names]
        for file in source.files:
            file.hash_in_order([place for holder, place in places if holder is file])


def write(
    out: str | PathLike[str], order: Order, shard_size: int | None, progress: Progress | None
) -> list[RecipeLine]:
    """Make a soup and put it at ``out``, whole or not at all.

    Returns:
        The recipe, as it stands in the soup.

    Raises:
        ValueError: Shards are asked for in a file.
        OSError: It cannot be written; what was at ``out`` is still there.
    """
    first = order.sources[0]
    if not goes_to_a_folder(out, first, shard_size):
        with atomic(fspath(out)) as file:
            kitchen = _Kitchen(order, progress)
            return kitchen.file(file, list(kitchen.layout), whole=True)
    with atomic_folder(fspath(out), replaces=is_soup) as folder:
        kitchen = _Kitchen(order, progress)
        return kitchen.folder(folder, cut(kitchen.layout, first, shard_size))
