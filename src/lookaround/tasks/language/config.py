"""Everything that decides what the language task is, in one typed record."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from lookaround.tasks.base import Copies
from lookaround.tasks.checks import check_ranges
from lookaround.tasks.language.corpus import Tokens
from lookaround.tasks.language.networks import LSTMSize, TransformerSize
from lookaround.tasks.language.windows import DIFFERENCES, Difference
from lookaround.tasks.text.differing import Differing


@dataclass(frozen=True)
class LanguageConfig:
    """Prediction of the next token of a text.

    Raises:
        ValueError: for a value outside its range, naming the option.

    Example:
        >>> from lookaround.tasks.language import LanguageConfig
        >>> LanguageConfig(root="ptb", network="transformer").size
        TransformerSize(width=128, layers=2, heads=4, hidden=512, dropout=0.1)
        >>> LanguageConfig(root="ptb", window=0)
        Traceback (most recent call last):
            ...
        ValueError: --window must be at least 1, got 0
    """

    root: str | None = field(default=None, metadata={"affects": False})
    """Folder of UTF-8 text: train.txt, valid.txt and test.txt, or Penn Treebank's ptb.train.txt …; without a training
    text, what there is is split anew."""
    ending: str | None = None
    """Ending of the files' names, such as en for train.en. None: all have one."""
    tokens: Tokens = "words"
    """What is predicted: words, which white space separates, or subwords (byte-level BPE)."""
    min_count: int = 1
    """Of words: a rarer one in training is read as the unknown word."""
    vocabulary: int = 8000
    """Of subwords: how many there are."""
    network: Literal["lstm", "transformer"] = "lstm"
    """An LSTM that carries its state from window to window, or a decoder-only Transformer that sees one window."""
    width: int = 128
    """Of a token's vector, and of the Transformer's layers."""
    hidden: int | None = None
    """Of the LSTM's layers but the last, or of the Transformer's inner ones. None: width, or four times width."""
    layers: int = 2
    """Of the LSTM, or blocks of the Transformer."""
    heads: int = 4
    """Of the Transformer's attention."""
    dropout: float = 0.1
    """Of the network; the LSTM's is the same at all places of a window."""
    dropout_input: float | None = None
    """Of the LSTM's input. None: as dropout."""
    dropout_hidden: float | None = None
    """Between the LSTM's layers. None: as dropout."""
    dropout_words: float = 0.0
    """Of whole tokens of the vocabulary, in the LSTM."""
    weight_drop: float = 0.0
    """Of the LSTM's recurrent weights."""
    activation: float = 0.0
    """The LSTM's penalty on large activations."""
    slowness: float = 0.0
    """The LSTM's penalty on activations that change in time."""
    window: int = 35
    """Tokens of a window: how far the LSTM's gradient goes back, and what the Transformer sees."""
    clip: float | None = 0.25
    """Largest norm of a gradient; a larger one is scaled down. None: any."""
    branches: int = 3
    """Copies of every minibatch, d, all of which every method consumes: Lookaround one a branch."""
    copies: Copies = "independent"
    """Whose copies they are: each branch goes through the text from a place of its own, or all from the same."""
    differences: tuple[Difference, ...] = ("windows",)
    """What else makes each branch's copies differ, one for all or one each: windows, nothing else; word-dropout, blanks
    among what is read; bpe-dropout, other subwords for the same text."""
    word_dropout: float = 0.1
    """Probability of a blank."""
    bpe_dropout: float = 0.1
    """Probability that a merge of subwords is left out."""
    eval_rows: int = field(default=16, metadata={"affects": False})
    """Texts or windows side by side in an evaluation; the LSTM reads each text without a past."""

    def __post_init__(self) -> None:
        check_ranges(self, _RANGES)
        unknown = [name for name in self.differences if name not in DIFFERENCES]
        if unknown:
            raise ValueError(f"--differences takes {', '.join(DIFFERENCES)}, got {unknown[0]}")
        if len(self.differences) not in (1, self.branches):
            got = " ".join(self.differences) or "none"
            raise ValueError(f"--differences must be one or one a branch ({self.branches}), got {got}")
        alike = [name for name in self.differences if name == "windows"] * (self.branches // len(self.differences))
        if self.copies == "shared" and len(alike) > 1:
            raise ValueError(
                "--copies shared --differences windows gives branches the very same tokens; choose --copies independent, "
                "or word-dropout or bpe-dropout for all branches but one"
            )

    @property
    def size(self) -> LSTMSize | TransformerSize:
        """Sizes of the network."""
        if self.network == "transformer":
            return TransformerSize(self.width, self.layers, self.heads, self.hidden or 4 * self.width, self.dropout)
        return LSTMSize(
            embedding=self.width,
            hidden=self.hidden or self.width,
            layers=self.layers,
            dropout=self.dropout,
            dropout_input=self.dropout if self.dropout_input is None else self.dropout_input,
            dropout_hidden=self.dropout if self.dropout_hidden is None else self.dropout_hidden,
            dropout_words=self.dropout_words,
            weight_drop=self.weight_drop,
            activation=self.activation,
            slowness=self.slowness,
        )

    @property
    def differing(self) -> Differing:
        """How the branches' copies differ."""
        return Differing(self.differences, self.word_dropout, self.bpe_dropout, self.copies)

    def suits(self) -> dict[str, Any]:
        """What suits the task among the experiment's own options."""
        return {"epochs": 10}


def preset(network: str | None) -> LanguageConfig:
    """The configuration that suits a network, for `dataclasses.replace` to change.

    Raises:
        ValueError: for an unknown network.

    Example:
        >>> from lookaround.tasks.language import preset
        >>> preset("transformer").clip
        1.0
    """
    if network in (None, "lstm"):
        return LanguageConfig()
    if network == "transformer":
        return LanguageConfig(network="transformer", window=64, clip=1.0)
    raise ValueError(f"--network takes lstm or transformer, got {network!r}")


_RANGES: dict[str, tuple[float, float | None]] = {
    "min_count": (1, None),
    "vocabulary": (1, None),
    "width": (1, None),
    "hidden": (1, None),
    "layers": (1, None),
    "heads": (1, None),
    "dropout": (0, 1),
    "dropout_input": (0, 1),
    "dropout_hidden": (0, 1),
    "dropout_words": (0, 1),
    "weight_drop": (0, 1),
    "activation": (0, None),
    "slowness": (0, None),
    "window": (1, None),
    "clip": (0, None),
    "branches": (1, None),
    "word_dropout": (0, 1),
    "bpe_dropout": (0, 1),
    "eval_rows": (1, None),
}
