"""Windows of a text: what makes the branches' copies differ, and how evaluations cover a text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lookaround.tasks.base import Batch, Batches
from lookaround.tasks.language.corpus import Corpus
from lookaround.tasks.language.networks import Window
from lookaround.tasks.streams import stream_seed
from lookaround.tasks.text import Text, TextError
from lookaround.tasks.text.differing import Differing

Difference = Literal["windows", "word-dropout", "bpe-dropout"]
DIFFERENCES: tuple[Difference, ...] = ("windows", "word-dropout", "bpe-dropout")
IGNORED = -100
_BLANK = 0  # the unknown word, or padding among subwords, which nothing else is


class TextWindows(Batches):
    """The windows of one run.

    In each epoch every branch reads the text as a ring from a place drawn anew, cut into equally long rows, which windows go
    along: a row's windows follow each other. The few tokens at the rows' ends that fill no window are left out in that epoch,
    and with BPE-dropout, which lengthens the text, as many as there are more.

    Args:
        corpus: whose training text.
        text: the training text, or what holding out leaves of it.
        rows: read side by side.
        width: tokens of a window (truncated backpropagation goes through so many).
        differing: how copies differ.
        seed: of the run.
        branches: copies of each minibatch.
        device: of the windows.

    Raises:
        TextError: for a text too short for a window, or BPE-dropout of words.
    """

    def __init__(
        self,
        corpus: Corpus,
        text: Text,
        *,
        rows: int,
        width: int,
        differing: Differing,
        seed: int,
        branches: int,
        device: torch.device,
    ) -> None:
        self.corpus, self.text, self.differing = corpus, text, differing
        self.seed, self.branches, self.device = seed, branches, device
        self.rows, self.width = rows, width
        self._whole = torch.tensor(corpus.stream(text))
        self.per_epoch = (len(self._whole) - 1) // (rows * width)
        self.units = rows * width
        if self.per_epoch < 1:
            raise TextError(
                f"{text.name} has {len(self._whole) - 1:,} tokens, fewer than a batch of {rows} rows times a window of {width}; "
                "give more text, a smaller --window, or a smaller batch of the methods (--all batch=2)"
            )
        if any(differing.of(branch) == "bpe-dropout" for branch in range(branches)):
            corpus.dropped(Text(text.name, ()), differing.bpe_dropout, 0)
        self._rings: dict[int, tuple[int, Tensor]] = {}

    def copy(self, position: int, branch: int) -> Batch:
        epoch, index = divmod(position, self.per_epoch)
        window = self._ring(epoch, branch)[:, index * self.width : (index + 1) * self.width + 1]
        tokens = window[:, :-1]
        if self.differing.of(branch) == "word-dropout":
            draw = torch.rand(tokens.shape, generator=self._generator("blanks", epoch, index, branch))
            tokens = tokens.masked_fill(draw < self.differing.word_dropout, _BLANK)
        inputs = Window(tokens.to(self.device), branch, index)
        return Batch(inputs, window[:, 1:].to(self.device), self.units)

    def _ring(self, epoch: int, branch: int) -> Tensor:
        """The rows ``(rows, per_epoch · width + 1)`` of a branch in an epoch; each begins with the token before its first target."""
        known, ring = self._rings.get(branch, (-1, self._whole))
        if known != epoch:
            ring = self._cut(self._read(epoch, branch), epoch, branch)
            self._rings[branch] = (epoch, ring)
        return ring

    def _read(self, epoch: int, branch: int) -> Tensor:
        if self.differing.of(branch) != "bpe-dropout":
            return self._whole
        seed = stream_seed(self.seed, "subwords", epoch, branch)
        return torch.tensor(self.corpus.dropped(self.text, self.differing.bpe_dropout, seed))

    def _cut(self, tokens: Tensor, epoch: int, branch: int) -> Tensor:
        own = branch if self.differing.copies == "independent" else "all"
        start = torch.randint(len(tokens), (), generator=self._generator("place", epoch, own))
        length = self.per_epoch * self.width
        places = torch.arange(self.rows)[:, None] * length + torch.arange(length + 1)
        return tokens[(start + places) % len(tokens)]

    def _generator(self, *what: int | str) -> torch.Generator:
        return torch.Generator().manual_seed(stream_seed(self.seed, *what))


class Reading(NamedTuple):
    """A window of an evaluation.

    Attributes:
        window: to call the network on.
        targets: int64 ``(N, T)``, -100 where another window counts the token, or there is none.
    """

    window: Window
    targets: Tensor


def recurrent_readings(stream: Tensor, rows: int, width: int) -> Iterator[Reading]:
    """Windows that follow each other along rows; every token of the stream but its first is predicted once.

    Args:
        stream: int64 ``(M,)``.
        rows: read side by side; each starts without a past.
        width: tokens of a window.
    """
    length = -(-(len(stream) - 1) // rows)
    places = torch.arange(rows)[:, None] * length + torch.arange(length)
    inside = places < len(stream) - 1
    tokens = stream[places.clamp(max=len(stream) - 2)]
    targets = stream[places.clamp(max=len(stream) - 2) + 1].masked_fill(~inside, IGNORED)
    for index, start in enumerate(range(0, length, width)):
        part = slice(start, start + width)
        yield Reading(Window(tokens[:, part], position=index), targets[:, part])


def overlapping_readings(stream: Tensor, rows: int, width: int) -> Iterator[Reading]:
    """Windows that overlap by half; every token but the first is predicted once, with at least half a window before it.

    Args:
        stream: int64 ``(M,)``.
        rows: windows in a batch.
        width: tokens of a window.
    """
    last, stride = len(stream) - 1, max(1, width // 2)
    starts = torch.arange(0, max(1, last - width + stride), stride)
    places = starts[:, None] + torch.arange(width)
    counted = (places < last) & ((torch.arange(width) >= width - stride) | (starts == 0)[:, None])
    places = places.clamp(max=last - 1)
    for part in torch.arange(len(starts)).split(rows):
        targets = stream[places[part] + 1].masked_fill(~counted[part], IGNORED)
        yield Reading(Window(stream[places[part]]), targets)
