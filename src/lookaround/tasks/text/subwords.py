"""Subwords: byte-level BPE, trained by ``tokenizers``, with a BPE-dropout that a seed decides.

``tokenizers`` has BPE-dropout too, but draws it from a generator that nobody can seed, and a run that is to resume bit for bit
cannot use that. Here the library trains the merges and encodes without dropout; `Subwords.drop` applies its merges at random.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from lookaround.tasks.text.files import TextError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD, BEGIN, END = 0, 1, 2
_SPECIAL = ("<pad>", "<s>", "</s>")
_SMALLEST = len(_SPECIAL) + 256  # every byte has a token, so no text has an unknown one


class Subwords:
    """A byte-level BPE: any text in, the same text out.

    Args:
        description: the JSON of a ``tokenizers.Tokenizer`` from `train_subwords`, as `description` gives it.

    Raises:
        TextError: for anything else, or without ``tokenizers``.

    Example:
        >>> from lookaround.tasks.text import train_subwords
        >>> subwords = train_subwords([["low lower lowest", "new newer"]], size=270)
        >>> [subwords.decode(numbers) for numbers in subwords.encode(["slow", "ﬁn de siècle"])]
        ['slow', 'ﬁn de siècle']
    """

    kind = "subwords"

    def __init__(self, description: str) -> None:
        library = _library()
        try:
            self._tokenizer: Tokenizer = library.Tokenizer.from_str(description)
        except Exception as error:  # the library raises bare Exception
            raise TextError(f"this is no tokenizer of subwords: {error}") from error
        self._tokenizer.encode_special_tokens = True  # a text that says </s> does not end there
        self.description = description

    def __len__(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    @property
    def end(self) -> int:
        """The number of a line's end."""
        return END

    def encode(self, lines: Iterable[str]) -> list[list[int]]:
        """The numbers of each line's subwords, neither begin nor end added."""
        return [list(encoding.ids) for encoding in self._tokenizer.encode_batch(list(lines), add_special_tokens=False)]

    def decode(self, numbers: Sequence[int]) -> str:
        """The text, special tokens left out."""
        return str(self._tokenizer.decode(list(numbers), skip_special_tokens=True)).removeprefix(" ")

    def drop(self, lines: Iterable[str], dropout: float, seed: int) -> list[list[int]]:
        """The numbers of each line's subwords with BPE-dropout (Provilkov et al. 2020).

        While a word is put together, each merge that could come next is left out with probability ``dropout``, anew at each
        merge; of the others the one learned first is made, until none remains. 0 gives what `encode` does, 1 single bytes.

        Args:
            lines: of text.
            dropout: the probability p; the paper recommends 0.1.
            seed: decides which merges are left out.
        """
        generator = random.Random(seed)
        return [
            [number for word in self._words(line) for number in self._split(word, dropout, generator)] for line in lines
        ]

    def _words(self, line: str) -> list[str]:
        before: Any = self._tokenizer.pre_tokenizer
        return [word for word, _ in before.pre_tokenize_str(line)]

    def _split(self, word: str, dropout: float, generator: random.Random) -> list[int]:
        ranks, parts, draw = self._ranks, list(word), generator.random
        while len(parts) > 1:
            open_merges = [
                (ranks[pair], place)
                for place, pair in enumerate(pairwise(parts))
                if pair in ranks and draw() >= dropout
            ]
            if not open_merges:
                break
            _, place = min(open_merges)
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        return [self._vocabulary[part] for part in parts]

    @cached_property
    def _ranks(self) -> dict[tuple[str, str], int]:
        merges = json.loads(self.description)["model"]["merges"]
        return {(left, right): rank for rank, (left, right) in enumerate(merges)}

    @cached_property
    def _vocabulary(self) -> dict[str, int]:
        return dict(self._tokenizer.get_vocab())


def train_subwords(texts: Iterable[Iterable[str]], *, size: int) -> Subwords:
    """Learns a byte-level BPE.

    Args:
        texts: lines, in any number of parts; both sides of a translation share one vocabulary.
        size: of the vocabulary, the 256 bytes and three special tokens included; reached if the texts have so many merges.

    Raises:
        TextError: for a size below 260, or without ``tokenizers``.
    """
    if size <= _SMALLEST:
        raise TextError(f"a vocabulary of subwords takes at least {_SMALLEST + 1} tokens, got {size}")
    library = _library()
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(_SPECIAL),
        initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((line for text in texts for line in text), trainer)
    return Subwords(tokenizer.to_str())


def _library() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise TextError("subwords need tokenizers: add it with: pip install '.[text]'") from error
    return tokenizers
