"""Finished networks as plain functions of tensors, for other programs to call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lookaround.averaging.files import read_header
from lookaround.commands.runs import load_run, network_of
from lookaround.commands.texts import text_task
from lookaround.tasks.language import load_language
from lookaround.tasks.language.carrying import State
from lookaround.tasks.language.networks import LSTM, Transformer, Window
from lookaround.tasks.translation import load_translator
from lookaround.tasks.translation.network import Sentences, Translator
from lookaround.tasks.vision.networks import Architecture


@dataclass(frozen=True)
class Deployed:
    """A network, and how it is called.

    Attributes:
        module: in evaluation mode.
        arguments: an example of what it takes: tensors and tuples of tensors.
        free: for each tensor among them, in the same nest, the axes that may have any size; axes of one name have one size.
        inputs: names of the tensors that it takes, in order.
        outputs: names of the tensors that it gives.
        notes: the metadata of the network's file: what its classes or tokens are, and where it comes from.
    """

    module: nn.Module
    arguments: tuple[Any, ...]
    free: tuple[Any, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    notes: Mapping[str, str]


def deployed(file: Path) -> Deployed:
    """What is exported of the network in a safetensors file, a run's or a soup's.

    Raises:
        ValueError: for a file that holds no network.
    """
    task, notes = text_task(file), read_header(file)[1]
    if task == "language":
        return _language(file, notes)
    return _translation(file, notes) if task == "translation" else _images(file, notes)


def _images(file: Path, notes: Mapping[str, str]) -> Deployed:
    model, about = network_of([load_run(file)])
    images = torch.zeros(2, about.channels, about.image_size, about.image_size, dtype=torch.uint8)
    return Deployed(Classifier(model, about).eval(), (images,), ({0: "n"},), ("images",), ("logits",), notes)


def _language(file: Path, notes: Mapping[str, str]) -> Deployed:
    model, vocabulary = load_language(file)
    tokens = torch.arange(6).view(2, 3) % len(vocabulary)
    if isinstance(model, Transformer):
        free = {0: "n", 1: "length"}
        return Deployed(NextToken(model).eval(), (tokens,), (free,), ("tokens",), ("logits",), notes)
    kept = tuple(f"{what}_{layer}" for layer in range(len(model.layers)) for what in ("hidden", "cell"))
    state = tuple(part.clone() for part in model.initial(2))  # one tensor twice would become one input
    # One token at a time: torch.export would write the steps of a longer text out, and fix their number.
    arguments, axes = (tokens[:, :1], state), ({0: "n"}, tuple({1: "n"} for _ in kept))
    after = tuple(f"{name}_after" for name in kept)
    return Deployed(Recurrent(model).eval(), arguments, axes, ("tokens", *kept), ("logits", *after), notes)


def _translation(file: Path, notes: Mapping[str, str]) -> Deployed:
    model, _ = load_translator(file)
    source, target = torch.tensor([[5, 6, 7, 2], [5, 2, 0, 0]]), torch.tensor([[1, 5, 6], [1, 5, 0]])
    free = ({0: "n", 1: "source_length"}, {0: "n", 1: "target_length"})
    return Deployed(Translating(model).eval(), (source, target), free, ("source", "target"), ("logits",), notes)


class Classifier(nn.Module):
    """From uint8 images, as they are, to logits."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, architecture: Architecture) -> None:
        super().__init__()
        self.model = model
        for name in ("mean", "std"):
            self.register_buffer(name, 255 * torch.tensor(getattr(architecture, name)).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Any:
        return self.model((images.float() - self.mean) / self.std)


class NextToken(nn.Module):
    """From tokens to the logits of the one after each."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Any:
        return self.model(Window(tokens))


class Recurrent(nn.Module):
    """From tokens and what was carried to logits and what is carried on, which its caller keeps."""

    def __init__(self, model: LSTM) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        output, after = self.model.recur(tokens, state)
        return self.model.read(output), after


class Translating(nn.Module):
    """From source and the translation so far to the logits of what comes after each of its tokens."""

    def __init__(self, model: Translator) -> None:
        super().__init__()
        self.model = model

    def forward(self, source: Tensor, target: Tensor) -> Any:
        return self.model(Sentences(source, target))
