"""Words as tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from lookaround.tasks.text.files import Text, TextError

UNKNOWN = "<unk>"
END = "<eos>"


@dataclass(frozen=True)
class Words:
    """A vocabulary of words, which white space separates; what is not in it is the unknown word.

    Attributes:
        words: in the order of their numbers, ``<unk>`` first and the end of a line, ``<eos>``, second.

    Example:
        >>> from lookaround.tasks.text import Text, count_words
        >>> vocabulary = count_words(Text("train", ("a b a", "<unk> a")), min_count=1)
        >>> vocabulary.encode(("a c",)), vocabulary.decode([2, 0])
        ([2, 0, 1], 'a <unk>')
    """

    words: tuple[str, ...]
    kind = "words"

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def _number(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}

    @property
    def unknown(self) -> int:
        """The number of the unknown word."""
        return 0

    @property
    def end(self) -> int:
        """The number of a line's end."""
        return 1

    def encode(self, lines: Iterable[str]) -> list[int]:
        """The lines as one stream of numbers, the end after each."""
        number, stream = self._number, []
        for line in lines:
            stream += [number.get(word, 0) for word in line.split()]
            stream.append(1)
        return stream

    def decode(self, numbers: Sequence[int]) -> str:
        """The words, one space between two."""
        return " ".join(self.words[number] for number in numbers)

    def unseen(self, text: Text) -> list[tuple[str, int]]:
        """The words of a text that are not in the vocabulary, each with the line of its occurrence, counted from 1."""
        known = self._number
        return [
            (word, line)
            for line, words in enumerate(text.lines, start=1)
            for word in words.split()
            if word not in known
        ]


def count_words(text: Text, *, min_count: int = 1) -> Words:
    """The vocabulary of a training text, from the most frequent word to the rarest, ties in the alphabet's order.

    Args:
        text: to count in.
        min_count: a rarer word becomes the unknown one, which the model thereby learns.

    Raises:
        TextError: when the end mark stands in the text, or no word is frequent enough.
    """
    counts = Counter(word for line in text.lines for word in line.split())
    if END in counts:
        raise TextError(f"{text.name}: the text has the word {END}, which marks a line's end here; remove it")
    kept = sorted(
        (word for word, n in counts.items() if n >= min_count and word != UNKNOWN), key=lambda w: (-counts[w], w)
    )
    if not kept:
        raise TextError(f"{text.name}: no word occurs {min_count} times; choose a lower min_count")
    return Words((UNKNOWN, END, *kept))


def check_seen(words: Words, train: Text, others: Sequence[Text]) -> list[str]:
    """Makes sure that every word to predict has been trained.

    Returns:
        A line for each text with words that are read as the unknown one.

    Raises:
        TextError: when there are such words and the training text has no unknown word that a model could learn.
    """
    trained = any(word == UNKNOWN for line in train.lines for word in line.split()) or bool(words.unseen(train))
    notes = []
    for text in others:
        unseen = words.unseen(text)
        if not unseen:
            continue
        word, line = unseen[0]
        if not trained:
            raise TextError(
                f"{text.name}, line {line}: {word!r} is never seen in training (nor are {len(unseen) - 1} other words), and nothing "
                "there is unknown; take subwords, or a min_count of 2 so that rare words train the unknown one"
            )
        total = sum(len(other.split()) for other in text.lines)
        notes.append(
            f"{text.name}: {len(unseen):,} of {total:,} words are never seen in training and read as {UNKNOWN}"
        )
    return notes
