"""Opening the ingredients of a soup, of whatever kind; files are known by what is in them, not by what they are called."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lookaround.averaging.files import Place, read_header
from lookaround.averaging.slots import find_slots, require_equal, unwrap
from lookaround.averaging.soups.archives import ZIP
from lookaround.averaging.soups.folders import folder_parts
from lookaround.averaging.soups.sources import FileSource, MemorySource, Source
from lookaround.averaging.soups.stored import StoredFile
from lookaround.averaging.soups.torch_files import BEFORE_1_6, read_torch_file

Ingredient = nn.Module | Mapping[str, Tensor] | str | PathLike[str]

_EXTRA = "_extra_state"
_LFS = b"version https://git-lfs"


def as_list(ingredients: object) -> list[Any]:
    """The ingredients as a list.

    Raises:
        TypeError: They are one path or one model.
        ValueError: There are none.
    """
    if isinstance(ingredients, str | bytes | PathLike):
        raise TypeError(f"a soup takes a list of ingredients, got one path, {str(ingredients)!r}: put it in a list")
    if isinstance(ingredients, nn.Module | Mapping):
        raise TypeError(f"a soup takes a list of ingredients, got one {type(ingredients).__name__}: put it in a list")
    found: list[Any] = list(ingredients)  # type: ignore[call-overload]
    if not found:
        raise ValueError("a soup needs at least one ingredient")
    return found


@contextmanager
def open_sources(ingredients: Sequence[Ingredient]) -> Iterator[list[Source]]:
    """All ingredients, checked to have the same names, shapes and dtypes; closed at the end.

    Raises:
        ValueError: There are none, or they differ; the message lists the differences.
    """
    with ExitStack() as stack:
        sources: list[Source] = []
        for index, ingredient in enumerate(as_list(ingredients)):
            sources.append(open_source(ingredient, index))
            stack.callback(sources[-1].close)
        _check_alike(sources)
        yield sources


@contextmanager
def open_files(paths: Sequence[str | PathLike[str]]) -> Iterator[list[FileSource]]:
    """Files and folders alone, checked as by :func:`open_sources`.

    Raises:
        ValueError: There are none, or they differ, or cannot be understood.
        TypeError: One is no path, or holds no set of named tensors.
        OSError: One cannot be read.
    """
    with ExitStack() as stack:
        sources: list[FileSource] = []
        for path in as_list(paths):
            sources.append(open_file(path))
            stack.callback(sources[-1].close)
        _check_alike(sources)
        yield sources


def _check_alike(sources: Sequence[Source]) -> None:
    for source in sources[1:]:
        require_equal(_described(sources[0]), _described(source), f"{source.name} and {sources[0].name}: the former")


def _described(source: Source) -> dict[str, str]:
    shapes = {name: f"{dtype} {shape}" for name, (dtype, shape) in source.layout.items()}
    return shapes | dict.fromkeys(source.extras, "no tensor")


def open_source(ingredient: Ingredient, index: int) -> Source:
    """The source for an ingredient of any kind.

    Raises:
        TypeError: The ingredient, or what a file holds, is no set of named tensors.
        ValueError: A file cannot be understood.
        OSError: A file cannot be read.
    """
    if isinstance(ingredient, nn.Module):
        tensors = {alias: slot.tensor for slot in find_slots(ingredient) for alias in slot.aliases}
        return MemorySource(f"model {index}", tensors, _extra_states(ingredient))
    if isinstance(ingredient, Mapping):
        name = f"state dict {index}"
        extras = {key: value for key, value in ingredient.items() if _is_extra(key) and not isinstance(value, Tensor)}
        return MemorySource(name, _flat({k: v for k, v in ingredient.items() if k not in extras}, name), extras)
    if not isinstance(ingredient, (str, PathLike)):
        raise TypeError(f"an ingredient is a model, a state dict or a path, got {type(ingredient).__name__}")
    return open_file(ingredient)


def _is_extra(name: object) -> bool:
    return str(name).rpartition(".")[2] == _EXTRA


def _extra_states(model: nn.Module) -> dict[str, Any]:
    own = unwrap(model)
    having = (pair for pair in own.named_modules() if type(pair[1]).get_extra_state is not nn.Module.get_extra_state)
    return {f"{name}.{_EXTRA}".lstrip("."): module.get_extra_state() for name, module in having}


def _flat(values: Mapping[str, Any], name: str) -> Mapping[str, Tensor]:
    if values and all(isinstance(v, Tensor) for v in values.values()):
        return values
    held = f"the keys {', '.join(map(str, list(values)[:5]))}"
    raise TypeError(f"{name} must map names to tensors, but holds {held}; give the model's state_dict() alone")


def open_file(path: str | PathLike[str]) -> FileSource:
    """The source for a file, or for a folder as Hugging Face's libraries write one.

    Raises:
        TypeError: It holds no set of named tensors, or the path is none.
        ValueError: It cannot be understood.
        OSError: It cannot be read.
    """
    if not isinstance(path, (str, PathLike)):
        raise TypeError(f"a soup of files takes paths, got {type(path).__name__}")
    found = Path(path)
    listed = folder_parts(found) if found.is_dir() else {found: None}
    # Before their headers are read, so that no file can be another one when its tensors are.
    stored = {file: StoredFile(file) for file in listed}
    read = {file: _read(file) for file in listed}
    for file, names in listed.items():
        if names is not None:
            require_equal(
                dict.fromkeys(names, ""), dict.fromkeys(read[file][0], ""), f"{file}: what the index says of it"
            )
    metadata = dict(set.intersection(*(set(one.items()) for _, one in read.values())))
    held = {name for places, _ in read.values() for name in places}
    notes = [note for _, one in read.values() for note in one.items()]
    aliases = {other: kept for other, kept in notes if kept in held and other not in held}
    return FileSource(fspath(path), [(stored[file], places) for file, (places, _) in read.items()], metadata, aliases)


def _read(path: Path) -> tuple[dict[str, Place], dict[str, str]]:
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is neither a file nor a folder")
    with open(path, "rb") as file:
        start = file.read(32)
    if start.startswith(ZIP) or BEFORE_1_6 in start:
        return read_torch_file(path), {}
    if start[8:9] == b"{" or path.suffix == ".safetensors":
        return read_header(path)
    if start.startswith(_LFS):
        raise ValueError(f"{path} is no checkpoint, but Git LFS's note of where one is; fetch it with git lfs pull")
    what = f"begins with {start[:16]!r}" if start else "is empty"
    raise ValueError(f"{path} is no checkpoint: it {what}, and is neither a safetensors nor a torch.save file")
