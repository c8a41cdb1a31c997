"""Prediction of the next token of a text (Zhang et al. 2019, section 5.3)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lookaround.tasks.base import Batch, Defaults, Metric, Predict, Split, Task
from lookaround.tasks.checks import affecting
from lookaround.tasks.language.config import LanguageConfig
from lookaround.tasks.language.corpus import Corpus, load_corpus
from lookaround.tasks.language.files import save_language
from lookaround.tasks.language.networks import Trained, build
from lookaround.tasks.language.windows import (
    IGNORED,
    Reading,
    TextWindows,
    overlapping_readings,
    recurrent_readings,
)
from lookaround.tasks.text import Text, TextError

_METRICS = (
    Metric("perplexity", "perplexity", lower=True),
    Metric("bits_per_byte", "bits/byte", lower=True, digits=4),
    Metric("loss", "loss", lower=True, digits=4, loss=True),
)
_SCHEDULE = {"schedule": "cosine", "warmup": 0.5}
_DEFAULTS = {
    "lstm": Defaults(
        "adamw",
        20,
        {"adamw": {"lr": 5e-3, "weight_decay": 1e-2}, "sgd": {"lr": 20.0, "weight_decay": 1.2e-6}},
        _SCHEDULE,
    ),
    "transformer": Defaults(
        "adamw", 20, {"adamw": {"lr": 2e-3, "weight_decay": 1e-2}, "sgd": {"lr": 0.5, "momentum": 0.9}}, _SCHEDULE
    ),
}


class LanguageTask(Task):
    """See `lookaround.tasks.base.Task`. The budget is tokens predicted; ``batch`` is rows of windows.

    Args:
        config: of the task.
        corpus: the text.
        device: of networks and windows.
        held_out: lines of the training text that were set aside, or None.

    Raises:
        ValueError: for settings that do not go together.
    """

    unit = "tokens"
    metrics = _METRICS

    def __init__(
        self, config: LanguageConfig, corpus: Corpus, device: torch.device, held_out: Text | None = None
    ) -> None:
        self.config, self.corpus, self.device, self.held_out = config, corpus, device, held_out
        self.name = Path(config.root or ".").name
        self.branches = config.branches
        self.clip = config.clip
        self.notes = corpus.notes
        self.defaults = _DEFAULTS[config.network]

    @classmethod
    def load(cls, config: LanguageConfig, device: torch.device) -> LanguageTask:
        """Reads the text and checks that all that is configured fits together.

        Raises:
            ValueError: in one line, for what cannot be used.
        """
        if config.root is None:
            raise TextError("--task language needs --root, a folder with train.txt, valid.txt and test.txt")
        corpus = load_corpus(
            Path(config.root), config.ending, config.tokens, size=config.vocabulary, min_count=config.min_count
        )
        task = cls(config, corpus, device)
        with torch.device("meta"):
            build(config.size, len(corpus.vocabulary))
        task.batches(0, 1, config.branches)
        return task

    def identity(self) -> dict[str, Any]:
        settings = affecting(self.config)
        held_out = 0 if self.held_out is None else len(self.held_out.lines)
        return {"task": "language", **settings, "held_out_lines": held_out, "digest": self.corpus.digest}

    def network(self) -> nn.Module:
        return build(self.config.size, len(self.corpus.vocabulary)).to(self.device)

    def batches(self, seed: int, batch: int, branches: int) -> TextWindows:
        """Windows of the training text, ``batch`` of them in a minibatch, a copy for each branch."""
        return TextWindows(
            self.corpus,
            self.corpus.train,
            rows=batch,
            width=self.config.window,
            differing=self.config.differing,
            seed=seed,
            branches=branches,
            device=self.device,
        )

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        said: Trained = model(batch.inputs)
        return F.cross_entropy(said.logits.flatten(0, 1).float(), batch.targets.flatten()) + said.penalty

    @torch.inference_mode()
    def evaluate(self, predict: Predict, split: Split) -> dict[str, float]:
        text = self._text(split)
        losses = self.losses(predict, text)
        return scores(losses.sum().item(), len(losses), text.bytes)

    @torch.inference_mode()
    def losses(self, predict: Predict, text: Text) -> Tensor:
        """The negative log-likelihood of each token of a text, in nats, float64; in the text's order where ``eval_rows`` is 1."""
        parts = []
        for window, targets in self._readings(text):
            logits = predict(window._replace(tokens=window.tokens.to(self.device)))
            wanted = targets.flatten().to(self.device)
            losses = F.cross_entropy(logits.flatten(0, 1).float(), wanted, reduction="none", ignore_index=IGNORED)
            parts.append(losses[wanted != IGNORED].double())
        return torch.cat(parts)

    def _readings(self, text: Text) -> Iterator[Reading]:
        stream = torch.tensor(self.corpus.stream(text))
        read = recurrent_readings if self.config.network == "lstm" else overlapping_readings
        return read(stream, self.config.eval_rows, self.config.window)

    def _text(self, split: Split) -> Text:
        if split == "train":
            return self.corpus.train
        if split == "test":
            return self.corpus.test
        if self.held_out is None:
            raise ValueError("no text is held out to evaluate on; pass --hold-out")
        return self.held_out

    def holding_out(self, fraction: float) -> LanguageTask:
        """The task without the last lines of its training text; the vocabulary stays that of all of it."""
        lines = self.corpus.train.lines
        kept = len(lines) - round(fraction * len(lines))
        if not 0 < fraction < 1 or not 0 < kept < len(lines):
            raise ValueError(f"--hold-out takes a part in (0, 1) that leaves lines on both sides, got {fraction}")
        rest, held_out = (Text(self.corpus.train.name, part) for part in (lines[:kept], lines[kept:]))
        return LanguageTask(self.config, replace(self.corpus, train=rest), self.device, held_out)

    def save(self, path: Path, model: nn.Module, notes: Mapping[str, str]) -> None:
        kept = {**notes, "data": self.name, "reading": json.dumps({"window": self.config.window})}
        save_language(path, model, self.config.size, self.corpus.vocabulary, kept)


def scores(total: float, tokens: int, size: int) -> dict[str, float]:
    """Perplexity of a token, bits for a byte of the text as it stands in the file, and the mean loss of a token.

    Args:
        total: negative log-likelihood of all tokens, in nats.
        tokens: their number.
        size: of the text in bytes.

    Example:
        >>> scores(math.log(2) * 40, tokens=10, size=20)["bits_per_byte"]
        2.0
    """
    loss = total / tokens
    perplexity = math.exp(loss) if loss < 700 else math.inf
    return {"perplexity": perplexity, "bits_per_byte": total / math.log(2) / size, "loss": loss}
