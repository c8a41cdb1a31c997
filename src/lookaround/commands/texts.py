"""Finished networks of text, measured on files and used on them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lookaround.averaging.files import read_header
from lookaround.commands.runs import network_file
from lookaround.errors import UsageError
from lookaround.experiment.folder import EXPERIMENT, saved_plan
from lookaround.tasks.base import Metric
from lookaround.tasks.language import LanguageConfig, LanguageTask, load_language
from lookaround.tasks.language.corpus import Corpus, read_parts
from lookaround.tasks.language.networks import LSTM
from lookaround.tasks.text import Text, Words, find_part, read_text
from lookaround.tasks.text.saving import ARCHITECTURE, READING
from lookaround.tasks.translation import TranslationConfig, TranslationTask, load_translator
from lookaround.tasks.translation.batches import padded
from lookaround.tasks.translation.decoding import translate
from lookaround.tasks.translation.pairs import Bitext, read_pairs

_CPU = torch.device("cpu")


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


def text_metrics(task: str) -> Sequence[Metric]:
    """What `evaluated` gives for a task."""
    return (TranslationTask if task == "translation" else LanguageTask).metrics


def evaluated(run: Path, root: Path | None, device: torch.device = _CPU, beam: int | None = None) -> dict[str, float]:
    """The metrics of a network's task on a test text, in the network's own vocabulary.

    Args:
        run: as for `text_task`.
        root: a text file, for a language model; or a folder with ``test.txt``, or ``test.SOURCE`` and ``test.TARGET``. None, or
            the folder that its experiment trained on: what training tested on, however that was split.
        device: to compute on.
        beam: hypotheses of a translator's search. None: as it was trained to be used.

    Raises:
        ValueError: for files that cannot be used.
    """
    config = _searching(run, _config(run), beam)
    own = None if config is None or config.root is None else Path(config.root)
    if root is None and own is None:
        raise UsageError(f"{run} lies in no experiment that says which text to measure it on; pass --root")
    if text_task(run) == "translation":
        return _translator(run, config, root or own, device)
    model, vocabulary = load_language(network_file(run))
    text = _test_text(config, own, root)
    chosen = _windows(config, model)
    return LanguageTask(chosen, Corpus(text, text, text, vocabulary), device).evaluate(model.to(device), "test")


def _searching(run: Path, config: Any, beam: int | None) -> Any:
    """The settings with another number of hypotheses."""
    if beam is None:
        return config
    if text_task(run) != "translation":
        raise UsageError(
            f"--beam {beam} is how translations are searched for, and {run} translates nothing; leave it out"
        )
    return replace(TranslationConfig() if config is None else config, beam=beam)


def _test_text(config: Any, own: Path | None, root: Path | None) -> Text:
    ending = getattr(config, "ending", None)
    if own is not None and (root is None or root.resolve() == own.resolve()):
        return read_parts(own, ending)[0]["test"]
    assert root is not None
    if root.is_file():
        return read_text(root)
    path = find_part(root, "test", ending or "txt") if root.is_dir() else None
    if path is None:
        raise UsageError(f"{root} holds no test.{ending or 'txt'}")
    return read_text(path)


def _windows(config: Any, model: nn.Module) -> LanguageConfig:
    """The settings that say how a text is read; those of the experiment, where there is one."""
    chosen = config if isinstance(config, LanguageConfig) else LanguageConfig()
    return replace(chosen, network="lstm" if isinstance(model, LSTM) else "transformer")


def _translator(run: Path, config: Any, root: Path | None, device: torch.device) -> dict[str, float]:
    if not (isinstance(config, TranslationConfig) and config.source and config.target):
        raise UsageError(
            f"neither {run} nor an experiment in whose folder it lies says from what into what it translates; keep it in its folder"
        )
    assert root is not None
    if root.is_file():
        raise UsageError(
            f"--root {root} is a file; a translation is measured on a folder with test.{config.source} and test.{config.target}"
        )
    model, subwords = load_translator(network_file(run))
    pairs, _ = read_pairs(root, "test", config.source, config.target)
    return TranslationTask(config, Bitext(pairs, pairs, pairs, subwords), device).evaluate(model.to(device), "test")


def _config(run: Path) -> Any:
    """The settings of the experiment in whose folder a network lies, or those by which it is used, as its file says; or None."""
    file = network_file(run)
    folder = file.parent.parent.parent
    if (folder / EXPERIMENT).is_file():
        return saved_plan(folder).config
    said = read_header(file)[1].get(READING)
    kind = TranslationConfig if text_task(run) == "translation" else LanguageConfig
    try:
        return None if said is None else kind(**json.loads(said))
    except (TypeError, ValueError) as error:
        raise UsageError(f"{file} is damaged: its metadata's {READING} is {said}") from error


def predicted(
    run: Path, files: Sequence[Path], at_a_time: int = 500, device: torch.device = _CPU, beam: int | None = None
) -> Iterator[tuple[str, ...]]:
    """A row for each line of text, under a header.

    A translator gives file, line and translation; a language model file, line, tokens and perplexity of the line, which it
    reads after the lines before it.

    Args:
        run: as for `text_task`.
        files: UTF-8 text.
        at_a_time: sentences that are translated together.
        device: to compute on.
        beam: as for `evaluated`.

    Raises:
        ValueError: for files that cannot be used, before the first row.
    """
    texts = [read_text(path) for path in files]
    config = _searching(run, _config(run), beam)
    if text_task(run) == "translation":
        yield "file", "line", "translation"
        yield from _translated(run, config or TranslationConfig(), texts, at_a_time, device)
    else:
        yield "file", "line", "tokens", "perplexity"
        yield from _scored(run, config, texts, device)


def _translated(
    run: Path, config: TranslationConfig, texts: Sequence[Text], at_a_time: int, device: torch.device
) -> Iterator[tuple[str, ...]]:
    model, subwords = load_translator(network_file(run))
    model.to(device)
    for text in texts:
        encoded = subwords.encode(text.lines)
        for start in range(0, len(encoded), at_a_time):
            part = encoded[start : start + at_a_time]
            source = padded(part, part)[0].source.to(device)
            for number, tokens in enumerate(translate(model, source, config.search), start=start + 1):
                yield text.name, str(number), subwords.decode(tokens)


@torch.inference_mode()
def _scored(run: Path, config: Any, texts: Sequence[Text], device: torch.device) -> Iterator[tuple[str, ...]]:
    model, vocabulary = load_language(network_file(run))
    reading = replace(_windows(config, model), eval_rows=1)  # one text, from its start
    for text in texts:
        task = LanguageTask(reading, Corpus(text, text, text, vocabulary), device)
        lengths = [len(_tokens(vocabulary, line)) for line in text.lines]
        losses = task.losses(model.to(device), text)
        for number, own in enumerate(losses.split(lengths), start=1):
            yield text.name, str(number), str(len(own)), f"{math.exp(own.mean().item()):.2f}"


def _tokens(vocabulary: Any, line: str) -> list[int]:
    """A line and its end."""
    if isinstance(vocabulary, Words):
        return vocabulary.encode([line])
    return [*vocabulary.encode([line])[0], vocabulary.end]
