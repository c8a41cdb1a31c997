"""A folder of text as streams of tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lookaround.tasks.checks import ANOTHER_ROOT
from lookaround.tasks.text import Subwords, Text, TextError, Words, count_words, find_part, read_text, train_subwords
from lookaround.tasks.text.files import PARTS
from lookaround.tasks.text.words import check_seen

Tokens = Literal["words", "subwords"]
# Of a text whose training part is missing: what is trained on, and the last part, which is tested on.
_TRAINED, _TESTED = 0.8, 0.9


@dataclass(frozen=True)
class Corpus:
    """The three parts of a text, and the tokens that all are read in.

    Attributes:
        train: is trained on.
        valid: is set aside for choices.
        test: is tested on.
        vocabulary: of the tokens; made from the training text alone.
        notes: what a reader of the numbers has to know, a line each.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for part in ("train", "valid", "test"):
        ...         _ = Path(folder, f"{part}.txt").write_text("the cat sat\\n")
        ...     corpus = load_corpus(Path(folder), "txt", "words", size=300, min_count=1)
        >>> corpus.stream(corpus.test)
        [1, 4, 2, 3, 1]
    """

    train: Text
    valid: Text
    test: Text
    vocabulary: Words | Subwords
    notes: tuple[str, ...] = ()

    def stream(self, text: Text) -> list[int]:
        """A text's tokens with the end of a line after each line, and one before the first token, so that it is predicted too."""
        if isinstance(self.vocabulary, Words):
            return [self.vocabulary.end, *self.vocabulary.encode(text.lines)]
        return join(self.vocabulary.encode(text.lines), self.vocabulary.end)

    def dropped(self, text: Text, dropout: float, seed: int) -> list[int]:
        """As `stream`, in subwords with BPE-dropout.

        Raises:
            TextError: for words, of which nothing can be dropped.
        """
        if isinstance(self.vocabulary, Words):
            raise TextError("bpe-dropout needs subwords, the tokens are words; choose --tokens subwords")
        return join(self.vocabulary.drop(text.lines, dropout, seed), self.vocabulary.end)

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that tell texts apart."""
        whole = hashlib.sha256()
        for text in (self.train, self.valid, self.test):
            whole.update("\n".join(text.lines).encode() + b"\0")
        return whole.hexdigest()[:16]


def join(lines: Sequence[Sequence[int]], end: int) -> list[int]:
    """One stream of all lines, ``end`` before the first and after each."""
    stream = [end]
    for line in lines:
        stream += [*line, end]
    return stream


def load_corpus(root: Path, ending: str | None, tokens: Tokens, *, size: int, min_count: int) -> Corpus:
    """Reads a folder of text.

    Args:
        root: holds ``train``, ``valid`` (or ``val``) and ``test``, each ``.ENDING``; names may have more before (``ptb.``) or
            after it (``test_2016_flickr``). Where there is no training text, all that there is is split anew, in order: four
            fifths to train, a tenth to validate, a tenth to test.
        ending: of the files' names; None where all have one.
        tokens: words, which white space separates, or subwords.
        size: of the vocabulary of subwords.
        min_count: a word rarer than that in training is the unknown one.

    Raises:
        TextError: in one line, for anything that cannot be used.
    """
    parts, notes = read_parts(root, ending)
    train = parts["train"]
    if tokens == "subwords":
        return Corpus(train, parts["valid"], parts["test"], train_subwords([train.lines], size=size), notes)
    words = count_words(train, min_count=min_count)
    unseen = check_seen(words, train, [parts["valid"], parts["test"]])
    return Corpus(train, parts["valid"], parts["test"], words, (*notes, *unseen))


def _only_ending(root: Path) -> str:
    if not root.is_dir():
        raise TextError(f"there is no folder {root}; {ANOTHER_ROOT}")
    endings = sorted(
        {path.suffix[1:] for part in PARTS for path in root.iterdir() if _holds(path, part) and path.suffix}
    )
    if not endings:
        raise TextError(f"{root} holds no text: there should be train.txt, valid.txt and test.txt in it")
    if len(endings) > 1:
        raise TextError(f"{root} holds texts that end in {' and in '.join(endings)}; choose one with --ending")
    return endings[0]


def _holds(path: Path, part: str) -> bool:
    names = path.stem.split(".")
    return any(name.split("_")[0] in PARTS[part] for name in names)


def read_parts(root: Path, ending: str | None) -> tuple[dict[str, Text], tuple[str, ...]]:
    """The texts ``train``, ``valid`` and ``test`` of a folder, as `load_corpus` finds or splits them, and notes on that.

    Raises:
        TextError: in one line, for anything that cannot be used.
    """
    ending = ending or _only_ending(root)
    if not root.is_dir():
        raise TextError(f"there is no folder {root}; {ANOTHER_ROOT}")
    found = {part: find_part(root, part, ending) for part in PARTS}
    texts = {part: read_text(path) for part, path in found.items() if path is not None}
    if "train" in texts and len(texts) == 3:
        return texts, ()
    if "train" in texts:
        missing = " and ".join(f"{part}.{ending}" for part in PARTS if part not in texts)
        raise TextError(f"{root} has no {missing}; a training text alone cannot be tested on, split it first")
    if not texts:
        raise TextError(f"{root} holds no train.{ending}, valid.{ending} or test.{ending}")
    return _split(root, list(texts.values()))


def _split(root: Path, texts: Sequence[Text]) -> tuple[dict[str, Text], tuple[str, ...]]:
    """Splits texts anew, in their order, as what a recurrent network reads is one text from line to line."""
    lines = [line for text in texts for line in text.lines]
    first, second = round(_TRAINED * len(lines)), round(_TESTED * len(lines))
    if not 0 < first < second < len(lines):
        raise TextError(f"{root} has no training text, and {len(lines)} lines are too few to split")
    cuts = {"train": (0, first), "valid": (first, second), "test": (second, len(lines))}
    parts = {part: Text(f"{root}, {part} part", tuple(lines[a:b])) for part, (a, b) in cuts.items()}
    for part in parts.values():
        if not any(line.strip() for line in part.lines):
            raise TextError(f"{part.name} has not a word in it; give the folder a training text")
    names = " and ".join(Path(text.name).name for text in texts)
    note = (
        f"{root} has no training text: {names} are split anew, in order, into lines 1-{first:,} to train, "
        f"{first + 1:,}-{second:,} to validate and {second + 1:,}-{len(lines):,} to test; numbers are not those of the usual split"
    )
    return parts, (note,)
