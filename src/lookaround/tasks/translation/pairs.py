"""Pairs of files, line by line translations of each other, as subwords of one vocabulary."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lookaround.tasks.checks import ANOTHER_ROOT
from lookaround.tasks.text import Subwords, Text, TextError, find_part, read_text, train_subwords
from lookaround.tasks.text.files import PARTS


@dataclass(frozen=True)
class Pairs:
    """Sentences in two languages.

    Attributes:
        source: lines to translate.
        target: their translations, as many.
    """

    source: Text
    target: Text

    def __len__(self) -> int:
        return len(self.source.lines)

    def part(self, places: Sequence[int]) -> Pairs:
        """The pairs at these places."""
        chosen = [Text(text.name, tuple(text.lines[place] for place in places)) for text in (self.source, self.target)]
        return Pairs(chosen[0], chosen[1])


@dataclass(frozen=True)
class Bitext:
    """The three parts of a data set, and the subwords that both languages are read in.

    Attributes:
        train: is trained on.
        valid: is set aside for choices.
        test: is tested on.
        subwords: learned from both sides of the training pairs.
        notes: what a reader of the numbers has to know, a line each.
    """

    train: Pairs
    valid: Pairs
    test: Pairs
    subwords: Subwords
    notes: tuple[str, ...] = ()

    @cached_property
    def encoded(self) -> list[list[list[int]]]:
        """Both sides of the training pairs in subwords. All runs read the same, and encoding takes longer than a short one of them."""
        return [self.subwords.encode(text.lines) for text in (self.train.source, self.train.target)]

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that tell data sets apart."""
        whole = hashlib.sha256()
        for pairs in (self.train, self.valid, self.test):
            for text in (pairs.source, pairs.target):
                whole.update("\n".join(text.lines).encode() + b"\0")
        return whole.hexdigest()[:16]


def load_bitext(root: Path, source: str | None, target: str | None, *, size: int, longest: int) -> Bitext:
    """Reads ``train``, ``valid`` (or ``val``) and ``test`` (or ``test_…``), each ``.SOURCE`` and ``.TARGET``.

    Args:
        root: the folder.
        source: ending of the files to translate.
        target: ending of their translations.
        size: of the vocabulary of subwords, which both languages share.
        longest: training pairs with more subwords than that on a side are left out.

    Raises:
        TextError: in one line, for anything that cannot be used.
    """
    if not root.is_dir():
        raise TextError(f"there is no folder {root}; {ANOTHER_ROOT}")
    if source is None or target is None:
        endings = sorted({path.suffix[1:] for path in root.glob("train.*")})
        raise TextError(
            f"{root}: say from what into what, --source and --target; it has train.{', train.'.join(endings)}"
        )
    if source == target:
        raise TextError(f"--source and --target are both {source}; they are the endings of two files")
    parts, notes = {}, []
    for part in PARTS:
        parts[part], empty = read_pairs(root, part, source, target)
        notes += [f"{root}, {part}: {empty} pairs with an empty side are left out"] if empty else []
    train = parts["train"]
    subwords = train_subwords([train.source.lines, train.target.lines], size=size)
    train, long = _without_long(train, subwords, longest)
    notes += [f"{root}: {long} training pairs of more than {longest} subwords are left out"] if long else []
    for part in ("valid", "test"):
        notes += unseen(train, parts[part], subwords)
    return Bitext(train, parts["valid"], parts["test"], subwords, tuple(notes))


def read_pairs(root: Path, part: str, source: str, target: str) -> tuple[Pairs, int]:
    """The pairs of one part of a folder that have words on both sides, and how many have not.

    Raises:
        TextError: in one line, for anything that cannot be used.
    """
    return _without_empty(_read(root, part, source, target))


def _read(root: Path, part: str, source: str, target: str) -> Pairs:
    sides = []
    for ending in (source, target):
        path = find_part(root, part, ending)
        if path is None:
            raise TextError(f"{root} holds no {part}.{ending} ({' or '.join(PARTS[part])}, with that ending)")
        sides.append(read_text(path))
    one, other = sides
    if len(one.lines) != len(other.lines):
        raise TextError(
            f"{one.name} has {len(one.lines):,} lines and {other.name} {len(other.lines):,}; in a pair of files each line is "
            "the translation of the other's"
        )
    return Pairs(one, other)


def _without_empty(pairs: Pairs) -> tuple[Pairs, int]:
    sides = zip(pairs.source.lines, pairs.target.lines, strict=True)
    kept = [place for place, (one, other) in enumerate(sides) if one.strip() and other.strip()]
    if not kept:
        raise TextError(f"{pairs.source.name} and {pairs.target.name}: not a line has words on both sides")
    return pairs.part(kept), len(pairs) - len(kept)


def _without_long(pairs: Pairs, subwords: Subwords, longest: int) -> tuple[Pairs, int]:
    sides = zip(subwords.encode(pairs.source.lines), subwords.encode(pairs.target.lines), strict=True)
    kept = [place for place, (one, other) in enumerate(sides) if max(len(one), len(other)) <= longest]
    if not kept:
        raise TextError(f"{pairs.source.name}: every pair has more than {longest} subwords; choose a higher --longest")
    return pairs.part(kept), len(pairs) - len(kept)


def unseen(train: Pairs, other: Pairs, subwords: Subwords) -> list[str]:
    """A line for each side with subwords that training never has (single bytes, as merges come from training)."""
    seen = {token for text in (train.source, train.target) for line in subwords.encode(text.lines) for token in line}
    notes = []
    for text in (other.source, other.target):
        lines = subwords.encode(text.lines)
        strange = [number for number, line in enumerate(lines, 1) for token in line if token not in seen]
        if strange:
            total = sum(map(len, lines))
            notes.append(
                f"{text.name}, line {strange[0]}: {len(strange):,} of {total:,} subwords are never seen in training, "
                "so that nothing is known of them"
            )
    return notes
