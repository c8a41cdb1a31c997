"""Where a soup goes: one safetensors file, or a folder of several with an index, as Hugging Face's libraries read it."""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path

from lookaround.averaging.files import read_header
from lookaround.averaging.soups.folders import INDEX, SINGLE, describes, folder_parts
from lookaround.averaging.soups.recipe import METADATA_KEY
from lookaround.averaging.soups.sources import FileSource, Layout

Names = list[str]


def goes_to_a_folder(out: str | PathLike[str], first: FileSource, shard_size: int | None) -> bool:
    """Whether the soup is to be a folder: ``out`` does not end in .safetensors, and an ingredient is one, or shards are asked for.

    Raises:
        ValueError: Shards are asked for in a file, or they are smaller than a byte.
    """
    named_file = fspath(out).endswith(".safetensors")
    if shard_size is not None and (named_file or shard_size < 1):
        raise ValueError(
            f"shards of {shard_size} bytes go to a folder: give OUT a name without .safetensors, and a size above 0"
        )
    return Path(out).is_dir() or (not named_file and (shard_size is not None or Path(first.name).is_dir()))


def cut(layout: Layout, first: FileSource, shard_size: int | None) -> list[Names]:
    """The names that each file is to hold: cut as the first ingredient is, or into files of at most ``shard_size`` bytes.

    A tensor larger than that has a file of its own.
    """
    names = [name for name in first.order() if name in layout]
    if shard_size is None:
        of = [[name for name in names if first.place(name)[0] is file] for file in first.files]
        return [found for found in of if found] or [[]]
    shards: list[Names] = [[]]
    room = shard_size
    for name in names:
        size = size_of({name: layout[name]})
        if size > room and shards[-1]:
            shards.append([])
            room = shard_size
        shards[-1].append(name)
        room -= size
    return shards


def size_of(layout: Layout) -> int:
    """Bytes of all tensors."""
    return sum(math.prod(shape) * dtype.itemsize for dtype, shape in layout.values())


def shard_names(count: int) -> list[str]:
    """The names of a model's files, as Hugging Face's libraries give them.

    >>> from lookaround.averaging.soups.outputs import shard_names
    >>> shard_names(1), shard_names(2)
    (['model.safetensors'], ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors'])
    """
    return [SINGLE] if count == 1 else [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]


def write_index(folder: Path, shards: Mapping[str, Sequence[str]], total: int, metadata: Mapping[str, object]) -> None:
    """Write the index of a folder's files: which holds which tensor."""
    weight_map = {name: file for file, names in shards.items() for name in names}
    text = json.dumps(
        {"metadata": {"total_size": total, **metadata}, "weight_map": dict(sorted(weight_map.items()))}, indent=2
    )
    (folder / INDEX).write_text(text + "\n", encoding="utf-8")


def copy_description(source: FileSource, folder: Path) -> None:
    """Copy what says what the model is (configuration, tokenizer) from an ingredient's folder, if it is one."""
    if Path(source.name).is_dir():
        for path in filter(describes, sorted(Path(source.name).iterdir())):
            shutil.copyfile(path, folder / path.name)


def is_soup(path: Path) -> bool:
    """Whether a file or a folder holds a soup and nothing else, so that another one may take its place."""
    try:
        if not path.is_dir():
            return METADATA_KEY in read_header(path)[1]
        files = [*folder_parts(path), *(file for file in path.iterdir() if file.name == INDEX or describes(file))]
        if not set(path.iterdir()) <= set(files):
            return False
        if (path / INDEX).is_file():
            return METADATA_KEY in json.loads((path / INDEX).read_text(encoding="utf-8"))["metadata"]
        return METADATA_KEY in read_header(path / SINGLE)[1]
    except (OSError, ValueError, KeyError, TypeError):
        return False
