"""Finished networks of text, measured on files and used on them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from lookaround.averaging.files import read_header
from lookaround.commands.runs import network_file
from lookaround.errors import UsageError
from lookaround.experiment.folder import EXPERIMENT, saved_plan
from lookaround.tasks.language import LanguageConfig, LanguageTask, load_language
from lookaround.tasks.language.corpus import Corpus
from lookaround.tasks.language.networks import LSTM, Window
from lookaround.tasks.text import Text, Words, find_part, read_text
from lookaround.tasks.text.saving import ARCHITECTURE
from lookaround.tasks.translation import TranslationConfig, TranslationTask, load_translator
from lookaround.tasks.translation.batches import padded
from lookaround.tasks.translation.decoding import translate
from lookaround.tasks.translation.pairs import Bitext, Pairs

_CPU = torch.device("cpu")
# Sentences that are translated at a time.
_AT_A_TIME = 64


def text_task(run: Path) -> str | None:
    """The task of a network of text, ``"language"`` or ``"translation"``; None for one of images, or no network.

    Args:
        run: a run's folder or its safetensors file, or a soup of some.
    """
    try:
        described = json.loads(read_header(network_file(run))[1].get(ARCHITECTURE, "{}"))
    except (UsageError, OSError, ValueError):
        return None
    task = described.get("task") if isinstance(described, dict) else None
    return task if task in ("language", "translation") else None


def evaluated(run: Path, root: Path) -> dict[str, float]:
    """The metrics of a network's task on the test text of a folder, in the network's own vocabulary.

    Args:
        run: as for `text_task`.
        root: a text file, for a language model; or a folder with ``test.txt``, or ``test.SOURCE`` and ``test.TARGET``.

    Raises:
        ValueError: for files that cannot be used.
    """
    config = _config(run)
    if text_task(run) == "translation":
        return _translator(run, config, root)
    model, vocabulary = load_language(network_file(run))
    text = read_text(root if root.is_file() else _part(root, getattr(config, "ending", None) or "txt"))
    chosen = config if isinstance(config, LanguageConfig) else LanguageConfig()
    own = replace(chosen, root=str(root), network="lstm" if isinstance(model, LSTM) else "transformer")
    return LanguageTask(own, Corpus(text, text, text, vocabulary), _CPU).evaluate(model, "test")


def _translator(run: Path, config: Any, root: Path) -> dict[str, float]:
    if not (isinstance(config, TranslationConfig) and config.source and config.target):
        raise UsageError(
            f"{run} lies in no experiment that says from what into what it translates; keep it in its folder"
        )
    model, subwords = load_translator(network_file(run))
    sides = [read_text(_part(root, ending)) for ending in (config.source, config.target)]
    pairs = Pairs(sides[0], sides[1])
    if len(sides[0].lines) != len(sides[1].lines):
        raise UsageError(f"{sides[0].name} and {sides[1].name} have different numbers of lines")
    return TranslationTask(config, Bitext(pairs, pairs, pairs, subwords), _CPU).evaluate(model, "test")


def _part(root: Path, ending: str) -> Path:
    path = find_part(root, "test", ending) if root.is_dir() else None
    if path is None:
        raise UsageError(f"{root} holds no test.{ending}")
    return path


def _config(run: Path) -> Any:
    folder = network_file(run).parent.parent.parent
    return saved_plan(folder).config if (folder / EXPERIMENT).is_file() else None


def predicted(run: Path, files: Sequence[Path]) -> Iterator[tuple[str, ...]]:
    """A row for each line of text, under a header.

    A translator gives file, line and translation; a language model file, line, tokens and perplexity of the line, which it
    reads after the lines before it.

    Args:
        run: as for `text_task`.
        files: UTF-8 text.

    Raises:
        ValueError: for files that cannot be used, before the first row.
    """
    texts = [read_text(path) for path in files]
    if text_task(run) == "translation":
        yield "file", "line", "translation"
        yield from _translated(run, texts)
    else:
        yield "file", "line", "tokens", "perplexity"
        yield from _scored(run, texts)


def _translated(run: Path, texts: Sequence[Text]) -> Iterator[tuple[str, ...]]:
    model, subwords = load_translator(network_file(run))
    config = _config(run)
    search = (config if isinstance(config, TranslationConfig) else TranslationConfig()).search
    for text in texts:
        encoded = subwords.encode(text.lines)
        for start in range(0, len(encoded), _AT_A_TIME):
            part = encoded[start : start + _AT_A_TIME]
            source = padded(part, part)[0].source
            for number, tokens in enumerate(translate(model, source, search), start=start + 1):
                yield text.name, str(number), subwords.decode(tokens)


@torch.inference_mode()
def _scored(run: Path, texts: Sequence[Text]) -> Iterator[tuple[str, ...]]:
    model, vocabulary = load_language(network_file(run))
    for text in texts:
        lines = [_tokens(vocabulary, line) for line in text.lines]
        stream = torch.tensor([vocabulary.end, *(token for line in lines for token in line)])
        logits = model(Window(stream[None, :-1]))
        assert isinstance(logits, torch.Tensor)
        losses = F.cross_entropy(logits[0].float(), stream[1:], reduction="none").split([len(line) for line in lines])
        for number, own in enumerate(losses, start=1):
            yield text.name, str(number), str(len(own)), f"{math.exp(own.double().mean().item()):.2f}"


def _tokens(vocabulary: Any, line: str) -> list[int]:
    """A line and its end."""
    if isinstance(vocabulary, Words):
        return vocabulary.encode([line])
    return [*vocabulary.encode([line])[0], vocabulary.end]
