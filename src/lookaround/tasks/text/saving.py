"""Networks of text as safetensors files that say how to build them again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lookaround.averaging.files import save_tensors
from lookaround.tasks.text.files import TextError
from lookaround.tasks.text.subwords import Subwords
from lookaround.tasks.text.words import Words

# The keys that networks of every task have in their files' metadata; each stands alone, so that a soup keeps what they agree on.
ARCHITECTURE = "lookaround.architecture"
NOTE = "lookaround.{}"
READING = NOTE.format("reading")
"""The key of those of the task's settings by which a network is used and measured, as JSON."""
_EXTRA = "_extra_state"


def save_described(path: Path, model: nn.Module, description: Mapping[str, Any], notes: Mapping[str, str]) -> None:
    """Writes the weights under their own names, atomically; what a recurrent network carries is no part of them.

    Args:
        path: of the safetensors file.
        model: on any device.
        description: JSON from which the network can be built again.
        notes: what else the metadata is to say, under ``lookaround.NAME``.

    Raises:
        OSError: when it cannot be written.
    """
    noted = {NOTE.format(name): note for name, note in notes.items()}
    described = {ARCHITECTURE: json.dumps(dict(description), ensure_ascii=False)}
    save_tensors(path, weights(model), {"format": "pt", **noted, **described})


def read_described(path: Path, task: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `save_described` wrote: the description and the weights.

    Raises:
        TextError: for another file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            if ARCHITECTURE not in metadata:
                raise ValueError(f"its metadata have no {ARCHITECTURE}")
            description = json.loads(metadata[ARCHITECTURE])
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise TextError(f"{path} is no network saved by lookaround train: {str(error).splitlines()[0]}") from error
    if not isinstance(description, dict) or description.get("task") != task:
        raise TextError(f"{path} holds no network of --task {task}")
    return description, tensors


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, without what a recurrent network carries."""
    return {name: value for name, value in model.state_dict().items() if not name.endswith(_EXTRA)}


def put(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Loads what `weights` gave.

    Raises:
        RuntimeError: for weights of another network.
    """
    carried = {name: value for name, value in model.state_dict().items() if name.endswith(_EXTRA)}
    model.load_state_dict({**tensors, **carried})


def describe_vocabulary(vocabulary: Words | Subwords) -> dict[str, Any]:
    """A vocabulary as JSON."""
    held: Any = list(vocabulary.words) if isinstance(vocabulary, Words) else vocabulary.description
    return {"kind": vocabulary.kind, "tokens": held}


def vocabulary_from(described: Mapping[str, Any]) -> Words | Subwords:
    """What `describe_vocabulary` described."""
    tokens = described["tokens"]
    return Words(tuple(tokens)) if described["kind"] == Words.kind else Subwords(tokens)
