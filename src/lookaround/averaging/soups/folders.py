"""Model folders as Hugging Face's libraries write them: one file of tensors, or several with an index, beside configuration."""

import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

INDEX = "model.safetensors.index.json"
"""Says which of a folder's files holds which tensor."""
SINGLE = "model.safetensors"
"""The file of a folder without an index."""
_SINGLE = (SINGLE, "adapter_model.safetensors", "pytorch_model.bin")

# What of a folder describes the model and its inputs, and so belongs to a soup too. Not the state of a training.
_DESCRIBING = (
    *(
        "config.json",
        "generation_config.json",
        "configuration_*.py",
        "modeling_*.py",
        "*tokenizer*",
        "vocab*",
        "merges.txt",
    ),
    *(
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template*",
        "preprocessor_config.json",
        "processor_config.json",
    ),
    *("*.model", "*.tiktoken"),
)


def folder_parts(folder: Path) -> dict[Path, set[str] | None]:
    """The files that hold a folder's tensors, with the names of those that an index says each of them holds.

    Raises:
        ValueError: It holds none, or several without an index, or the index is damaged or names a file that is not there.
    """
    indices = sorted(folder.glob("*.index.json"))
    indices = [index for index in indices if "safetensors" in index.name] or indices
    if len(indices) > 1:
        raise ValueError(
            f"{folder} holds several models: {', '.join(i.name for i in indices)}; name the files of one of them"
        )
    if indices:
        return {**_indexed(indices[0])}
    for name in _SINGLE:
        if (folder / name).is_file():
            return {folder / name: None}
    found = sorted(folder.glob("*.safetensors"))
    if len(found) != 1:
        raise ValueError(
            f"{folder} holds {len(found)} safetensors files and no {INDEX} or {SINGLE}; name the file that is meant"
        )
    return {found[0]: None}


def _indexed(index: Path) -> dict[Path, set[str]]:
    weight_map = _weight_map(index)
    for file in sorted(set(weight_map.values())):
        if Path(file).name != file:
            raise ValueError(f"{index} is damaged: {file!r} is no name of a file beside it")
        if not (index.parent / file).is_file():
            raise ValueError(f"{index} names {file}, which is not there; fetch the whole model")
    files = sorted(set(weight_map.values()))
    return {index.parent / file: {name for name, its in weight_map.items() if its == file} for file in files}


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map: dict[Any, Any] = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"].items())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{index} is damaged: it has no weight_map that can be read ({type(error).__name__})"
        ) from error
    if not weight_map or not all(isinstance(file, str) for file in weight_map.values()):
        raise ValueError(f"{index} is damaged: its weight_map does not map names to files")
    return weight_map


def describes(path: Path) -> bool:
    """Whether this file of a model's folder says what the model is or how its inputs are made: configuration, tokenizer."""
    return path.is_file() and any(fnmatch(path.name, pattern) for pattern in _DESCRIBING)
