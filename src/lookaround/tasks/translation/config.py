"""Everything that decides what the translation task is, in one typed record."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lookaround.tasks.base import Copies
from lookaround.tasks.checks import check_ranges
from lookaround.tasks.text.differing import Differing
from lookaround.tasks.translation.batches import DIFFERENCES, Difference
from lookaround.tasks.translation.decoding import Search
from lookaround.tasks.translation.network import TranslatorSize


@dataclass(frozen=True)
class TranslationConfig:
    """Translation of sentences by an encoder-decoder Transformer.

    Raises:
        ValueError: for a value outside its range, naming the option.

    Example:
        >>> from lookaround.tasks.translation import TranslationConfig
        >>> TranslationConfig(root="multi30k", source="en", target="de").size.layers
        2
        >>> TranslationConfig(beam=0)
        Traceback (most recent call last):
            ...
        ValueError: --beam must be at least 1, got 0
    """

    root: str | None = field(default=None, metadata={"affects": False})
    """Folder of UTF-8 files, pairs line by line: train.SOURCE and train.TARGET, valid (or val) and test (or test_…)."""
    source: str | None = None
    """Ending of the files to translate, such as en."""
    target: str | None = None
    """Ending of their translations, such as de."""
    vocabulary: int = 4000
    """Subwords (byte-level BPE) of both languages together."""
    longest: int = 100
    """Training pairs with more subwords than that on a side are left out."""
    width: int = 128
    """Of the network's layers."""
    layers: int = 2
    """Blocks of the encoder, and of the decoder."""
    heads: int = 4
    """Of attention."""
    hidden: int | None = None
    """Width between the two linear layers of a block. None: four times width."""
    dropout: float = 0.1
    """Of vectors, attention weights and what blocks add."""
    label_smoothing: float = 0.1
    """Share of the target spread evenly over all subwords in the training loss."""
    clip: float | None = 1.0
    """Largest norm of a gradient; a larger one is scaled down. None: any."""
    branches: int = 3
    """Copies of every minibatch, d, all of which every method consumes: Lookaround one a branch."""
    copies: Copies = "independent"
    """Whose copies they are: each branch draws pairs in an order of its own, or all in the same."""
    differences: tuple[Difference, ...] = ("order",)
    """What else makes each branch's copies differ, one for all or one each: order, nothing else; word-dropout, blanks
    among what is read; bpe-dropout, other subwords for the same text."""
    word_dropout: float = 0.1
    """Probability of a blank."""
    bpe_dropout: float = 0.1
    """Probability that a merge of subwords is left out."""
    beam: int = 1
    """Hypotheses of the search for a translation; 1 is greedy."""
    length_penalty: float = 0.6
    """Of the search: a hypothesis scores its log-probability over ((5 + length) / 6) to this power."""
    bleu_tokens: str = "13a"
    """sacrebleu's tokenizer for BLEU; none for text that is tokenized already."""
    eval_batch: int = field(default=4000, metadata={"affects": False})
    """Subwords of a minibatch in an evaluation."""

    def __post_init__(self) -> None:
        check_ranges(self, _RANGES)
        unknown = [name for name in self.differences if name not in DIFFERENCES]
        if unknown:
            raise ValueError(f"--differences takes {', '.join(DIFFERENCES)}, got {unknown[0]}")
        if len(self.differences) not in (1, self.branches):
            got = " ".join(self.differences) or "none"
            raise ValueError(f"--differences must be one or one a branch ({self.branches}), got {got}")
        alike = [name for name in self.differences if name == "order"] * (self.branches // len(self.differences))
        if self.copies == "shared" and len(alike) > 1:
            raise ValueError(
                "--copies shared --differences order gives branches the very same pairs; choose --copies independent, "
                "or word-dropout or bpe-dropout for all branches but one"
            )

    @property
    def size(self) -> TranslatorSize:
        """Sizes of the network."""
        return TranslatorSize(self.width, self.layers, self.heads, self.hidden or 4 * self.width, self.dropout)

    @property
    def differing(self) -> Differing:
        """How the branches' copies differ."""
        return Differing(self.differences, self.word_dropout, self.bpe_dropout, self.copies)

    @property
    def search(self) -> Search:
        """How translations are searched for."""
        return Search(self.beam, self.length_penalty)

    def suits(self) -> dict[str, Any]:
        """What suits the task among the experiment's own options."""
        return {"epochs": 10}


_RANGES: dict[str, tuple[float, float | None]] = {
    "vocabulary": (1, None),
    "longest": (1, None),
    "width": (1, None),
    "layers": (1, None),
    "heads": (1, None),
    "hidden": (1, None),
    "dropout": (0, 1),
    "label_smoothing": (0, 1),
    "clip": (0, None),
    "branches": (1, None),
    "word_dropout": (0, 1),
    "bpe_dropout": (0, 1),
    "beam": (1, None),
    "length_penalty": (0, None),
    "eval_batch": (1, None),
}
