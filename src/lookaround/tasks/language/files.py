"""A language model that can be built again from its file: weights, sizes and vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from torch import nn

from lookaround.tasks.language.networks import LSTM, LSTMSize, Transformer, TransformerSize, build
from lookaround.tasks.text import Subwords, TextError, Words
from lookaround.tasks.text.saving import describe_vocabulary, put, read_described, save_described, vocabulary_from

_SIZES = {"lstm": LSTMSize, "transformer": TransformerSize}


def save_language(
    path: Path,
    model: nn.Module,
    size: LSTMSize | TransformerSize,
    vocabulary: Words | Subwords,
    notes: Mapping[str, str],
) -> None:
    """Writes a language model; see `lookaround.tasks.text.saving.save_described`."""
    network = "lstm" if isinstance(size, LSTMSize) else "transformer"
    description = {"task": "language", "network": network, "size": asdict(size)}
    save_described(path, model, {**description, "vocabulary": describe_vocabulary(vocabulary)}, notes)


def load_language(path: str | Path) -> tuple[LSTM | Transformer, Words | Subwords]:
    """The network in a run's ``model.safetensors``, or in a soup of some, on the CPU and in evaluation mode; its vocabulary.

    Raises:
        TextError: for a file that is missing, damaged or of another task.
    """
    described, tensors = read_described(Path(path), "language")
    try:
        size = _SIZES[described["network"]](**described["size"])
        vocabulary = vocabulary_from(described["vocabulary"])
        model = build(size, len(vocabulary))
        put(model, tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise TextError(f"{path} is damaged: {str(error).splitlines()[0]}") from error
    return model.eval(), vocabulary
