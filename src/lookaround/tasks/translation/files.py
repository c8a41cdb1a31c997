"""A translation network that can be built again from its file: weights, sizes and subwords."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from torch import nn

from lookaround.tasks.text import Subwords, TextError
from lookaround.tasks.text.saving import describe_vocabulary, put, read_described, save_described, vocabulary_from
from lookaround.tasks.translation.network import Translator, TranslatorSize


def save_translator(
    path: Path, model: nn.Module, size: TranslatorSize, subwords: Subwords, notes: Mapping[str, str]
) -> None:
    """Writes a translation network; see `lookaround.tasks.text.saving.save_described`."""
    description = {"task": "translation", "size": asdict(size), "vocabulary": describe_vocabulary(subwords)}
    save_described(path, model, description, notes)


def load_translator(path: str | Path) -> tuple[Translator, Subwords]:
    """The network in a run's ``model.safetensors``, or in a soup of some, on the CPU and in evaluation mode; its subwords.

    Raises:
        TextError: for a file that is missing, damaged or of another task.
    """
    described, tensors = read_described(Path(path), "translation")
    try:
        subwords = vocabulary_from(described["vocabulary"])
        model = Translator(len(subwords), TranslatorSize(**described["size"]))
        put(model, tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise TextError(f"{path} is damaged: {str(error).splitlines()[0]}") from error
    assert isinstance(subwords, Subwords)
    return model.eval(), subwords
