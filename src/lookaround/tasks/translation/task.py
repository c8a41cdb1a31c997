"""Translation of sentences by an encoder-decoder Transformer (Zhang et al. 2019, section 5.4)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lookaround.tasks.base import Batch, Defaults, Metric, Predict, Split, Task
from lookaround.tasks.checks import affecting
from lookaround.tasks.streams import stream_seed
from lookaround.tasks.text import TextError
from lookaround.tasks.translation.batches import IGNORED, PairBatches, readings
from lookaround.tasks.translation.config import TranslationConfig
from lookaround.tasks.translation.decoding import translate
from lookaround.tasks.translation.files import save_translator
from lookaround.tasks.translation.network import Sentences, Translator
from lookaround.tasks.translation.pairs import Bitext, Pairs, load_bitext
from lookaround.tasks.translation.scores import corpus_scores

# Which pairs are held out does not change with a run's seed.
_HOLD_OUT_SEED = 0
_METRICS = (
    Metric("bleu", "BLEU", lower=False),
    Metric("chrf", "chrF", lower=False),
    Metric("loss", "loss", lower=True, digits=4, loss=True),
)
# Of the settings: what a network is used and measured with, wherever its file lies.
_READING = ("source", "target", "beam", "length_penalty", "bleu_tokens")
_DEFAULTS = Defaults(
    "adamw",
    2000,
    {"adamw": {"lr": 2e-3, "betas": (0.9, 0.98), "weight_decay": 1e-2}, "sgd": {"lr": 0.5, "momentum": 0.9}},
    {"schedule": "inverse-sqrt", "warmup": 1.0},
)


class TranslationTask(Task):
    """See `lookaround.tasks.base.Task`. The budget is target subwords predicted, ends included; ``batch`` is subwords of a side.

    Args:
        config: of the task.
        bitext: the pairs.
        device: of networks and minibatches.
        held_out: training pairs that were set aside, or None.

    Raises:
        ValueError: for settings that do not go together.
    """

    unit = "tokens"
    metrics = _METRICS

    def __init__(
        self, config: TranslationConfig, bitext: Bitext, device: torch.device, held_out: Pairs | None = None
    ) -> None:
        self.config, self.bitext, self.device, self.held_out = config, bitext, device, held_out
        self.name = Path(config.root or ".").name
        self.branches = config.branches
        self.clip = config.clip
        self.notes = bitext.notes
        self.defaults = _DEFAULTS

    @classmethod
    def load(cls, config: TranslationConfig, device: torch.device) -> TranslationTask:
        """Reads the pairs and checks that all that is configured fits together.

        Raises:
            ValueError: in one line, for what cannot be used.
        """
        if config.root is None:
            raise TextError("--task translation needs --root, a folder with train.SOURCE and train.TARGET")
        corpus_scores(["a"], ["a"], config.bleu_tokens)
        bitext = load_bitext(
            Path(config.root), config.source, config.target, size=config.vocabulary, longest=config.longest
        )
        with torch.device("meta"):
            Translator(len(bitext.subwords), config.size)
        return cls(config, bitext, device)

    def identity(self) -> dict[str, Any]:
        settings = affecting(self.config)
        held_out = 0 if self.held_out is None else len(self.held_out)
        return {"task": "translation", **settings, "held_out_pairs": held_out, "digest": self.bitext.digest}

    def network(self) -> nn.Module:
        return Translator(len(self.bitext.subwords), self.config.size).to(self.device)

    def batches(self, seed: int, batch: int, branches: int) -> PairBatches:
        return PairBatches(
            self.bitext,
            batch=batch,
            differing=self.config.differing,
            seed=seed,
            branches=branches,
            device=self.device,
        )

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        logits = model(batch.inputs).flatten(0, 1).float()
        return F.cross_entropy(
            logits, batch.targets.flatten(), ignore_index=IGNORED, label_smoothing=self.config.label_smoothing
        )

    @torch.inference_mode()
    def evaluate(self, predict: Predict, split: Split) -> dict[str, float]:
        """BLEU and chrF of the translations, and the loss in nats a subword."""
        pairs = self._pairs(split)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        count, said = 0, [""] * len(pairs)
        for places, inputs, targets in readings(pairs, self.bitext.subwords, self.config.eval_batch):
            here = Sentences(inputs.source.to(self.device), inputs.target.to(self.device))
            wanted = targets.flatten().to(self.device)
            total += F.cross_entropy(predict(here).flatten(0, 1).float(), wanted, reduction="sum", ignore_index=IGNORED)
            count += int((targets != IGNORED).sum())
            for place, tokens in zip(places, translate(predict, here.source, self.config.search), strict=True):
                said[place] = self.bitext.subwords.decode(tokens)
        scores = corpus_scores(said, pairs.target.lines, self.config.bleu_tokens)
        return {**scores, "loss": total.item() / count}

    def _pairs(self, split: Split) -> Pairs:
        if split == "train":
            return self.bitext.train
        if split == "test":
            return self.bitext.test
        if self.held_out is None:
            raise ValueError("no pairs are held out to evaluate on; pass --hold-out")
        return self.held_out

    def holding_out(self, fraction: float) -> TranslationTask:
        """The task without some training pairs, drawn at random; the subwords stay those of all of them."""
        train = self.bitext.train
        count = round(fraction * len(train))
        if not 0 < fraction < 1 or not 0 < count < len(train):
            raise ValueError(f"--hold-out takes a part in (0, 1) that leaves pairs on both sides, got {fraction}")
        generator = torch.Generator().manual_seed(stream_seed(_HOLD_OUT_SEED, "held out"))
        order = torch.randperm(len(train), generator=generator)
        held_out, rest = (train.part(places.sort().values.tolist()) for places in (order[:count], order[count:]))
        return TranslationTask(self.config, replace(self.bitext, train=rest), self.device, held_out)

    def save(self, path: Path, model: nn.Module, notes: Mapping[str, str]) -> None:
        read = {name: getattr(self.config, name) for name in _READING}
        kept = {**notes, "data": self.name, "reading": json.dumps(read)}
        save_translator(path, model, self.config.size, self.bitext.subwords, kept)
