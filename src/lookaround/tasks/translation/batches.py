"""Minibatches of sentence pairs by tokens, and what makes the branches' copies differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lookaround.tasks.base import Batch, Batches
from lookaround.tasks.streams import stream_seed
from lookaround.tasks.text import Subwords, TextError
from lookaround.tasks.text.differing import Differing
from lookaround.tasks.text.subwords import BEGIN, END, PAD
from lookaround.tasks.translation.network import Sentences
from lookaround.tasks.translation.pairs import Bitext, Pairs

Difference = Literal["order", "word-dropout", "bpe-dropout"]
DIFFERENCES: tuple[Difference, ...] = ("order", "word-dropout", "bpe-dropout")
IGNORED = -100


class PairBatches(Batches):
    """The minibatches of one run: pairs of like length, as many as fit into ``batch`` tokens a side, padding included.

    The pairs are sorted by length and cut once, so that every epoch has as many minibatches. In each epoch pairs as long
    change places at random, and the minibatches come in an order drawn anew. Lengths are those without BPE-dropout.

    Args:
        bitext: whose training pairs these are.
        batch: subwords of a minibatch, on the longer side.
        differing: how copies differ.
        seed: of the run.
        branches: copies of each minibatch.
        device: of the minibatches.

    Raises:
        TextError: for a sentence longer than a minibatch.
    """

    def __init__(
        self,
        bitext: Bitext,
        *,
        batch: int,
        differing: Differing,
        seed: int,
        branches: int,
        device: torch.device,
    ) -> None:
        self.pairs, self.subwords, self.encoded, self.differing = (
            bitext.train,
            bitext.subwords,
            bitext.encoded,
            differing,
        )
        self.seed, self.branches, self.device = seed, branches, device
        self._lengths = torch.tensor([[len(line) for line in side] for side in self.encoded])
        self._cuts = cut(self._lengths, batch)
        self.per_epoch = len(self._cuts)
        self.units = round(int((self._lengths[1] + 1).sum()) / self.per_epoch)
        self._orders: dict[int, tuple[int, list[Tensor]]] = {}

    def copy(self, position: int, branch: int) -> Batch:
        """A branch's copy of the minibatch at a position of the run, padded to its longest sentence."""
        epoch, index = divmod(position, self.per_epoch)
        chosen = self._order(epoch, branch)[index].tolist()
        source, target = self._read(chosen, epoch, index, branch)
        inputs, targets = padded(source, target)
        sides = [inputs.source, inputs.target]
        if self.differing.of(branch) == "word-dropout":
            generator = self._generator("blanks", epoch, index, branch)
            sides = [self._blanked(side, generator) for side in sides]
        size = sum(len(line) + 1 for line in target)
        here = Sentences(sides[0].to(self.device), sides[1].to(self.device))
        return Batch(here, targets.to(self.device), size)

    def _read(self, chosen: Sequence[int], epoch: int, index: int, branch: int) -> list[list[list[int]]]:
        if self.differing.of(branch) != "bpe-dropout":
            return [[side[place] for place in chosen] for side in self.encoded]
        rate = self.differing.bpe_dropout
        return [
            self.subwords.drop(
                [text.lines[place] for place in chosen],
                rate,
                stream_seed(self.seed, "subwords", epoch, index, branch, side),
            )
            for side, text in (("source", self.pairs.source), ("target", self.pairs.target))
        ]

    def _blanked(self, tokens: Tensor, generator: torch.Generator) -> Tensor:
        """Some subwords become the end mark, which stands nowhere in what is read; padding would hide their place."""
        drawn = torch.rand(tokens.shape, generator=generator) < self.differing.word_dropout
        return tokens.masked_fill(drawn & (tokens != PAD) & (tokens != BEGIN), END)

    def _order(self, epoch: int, branch: int) -> list[Tensor]:
        """The places of the pairs of each minibatch of an epoch."""
        known, order = self._orders.get(branch, (-1, []))
        if known != epoch:
            generator = self._generator("order", epoch, branch if self.differing.copies == "independent" else "all")
            ranked = by_length(self._lengths, generator)
            batches = [ranked[begin:end] for begin, end in self._cuts]
            order = [batches[place] for place in torch.randperm(len(batches), generator=generator).tolist()]
            self._orders[branch] = (epoch, order)
        return order

    def _generator(self, *what: int | str) -> torch.Generator:
        return torch.Generator().manual_seed(stream_seed(self.seed, *what))


def by_length(lengths: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The places of pairs from the shortest to the longest, each as long as its longer side; pairs as long in random order.

    The shorter side plays no part: sorted by it, too, a minibatch would hold sentences of one or two lengths, which all end at one place.

    Args:
        lengths: int64 ``(2, N)``, of sources and targets.
        generator: None leaves them in their own.
    """
    key = lengths.max(0).values
    start = torch.arange(len(key)) if generator is None else torch.randperm(len(key), generator=generator)
    return start[key[start].argsort(stable=True)]


def cut(lengths: Tensor, batch: int) -> list[tuple[int, int]]:
    """Where to cut pairs in the order of `by_length` so that no part has more than ``batch`` tokens a side, ends and padding included.

    Raises:
        TextError: for a longer sentence.
    """
    longest = (lengths.max(0).values[by_length(lengths)] + 1).tolist()
    if longest[-1] > batch:
        raise TextError(f"a batch of {batch} tokens has no room for a sentence of {longest[-1]}; choose a larger one")
    cuts, begin = [], 0
    for place, length in enumerate(longest):
        if (place + 1 - begin) * length > batch:
            cuts.append((begin, place))
            begin = place
    return [*cuts, (begin, len(longest))]


def padded(source: Sequence[Sequence[int]], target: Sequence[Sequence[int]]) -> tuple[Sentences, Tensor]:
    """What the network reads, and what it is to say: the target with its end, -100 where there is padding.

    Example:
        >>> inputs, targets = padded([[7, 8], [9]], [[5], [6, 6]])
        >>> inputs.source.tolist(), inputs.target.tolist(), targets.tolist()
        ([[7, 8, 2], [9, 2, 0]], [[1, 5, 0], [1, 6, 6]], [[5, 2, -100], [6, 6, 2]])
    """
    sources = _pad([[*line, END] for line in source], PAD)
    read = _pad([[BEGIN, *line] for line in target], PAD)
    return Sentences(sources, read), _pad([[*line, END] for line in target], IGNORED)


def _pad(lines: Sequence[Sequence[int]], value: int) -> Tensor:
    return pad_sequence([torch.tensor(line) for line in lines], batch_first=True, padding_value=value)


def readings(pairs: Pairs, subwords: Subwords, batch: int) -> Iterator[tuple[list[int], Sentences, Tensor]]:
    """All pairs once, in minibatches by length: their places, what the network reads, what it is to say."""
    encoded = [subwords.encode(text.lines) for text in (pairs.source, pairs.target)]
    lengths = torch.tensor([[len(line) for line in side] for side in encoded])
    ranked = by_length(lengths).tolist()
    for begin, end in cut(lengths, max(batch, int(lengths.max()) + 1)):
        places = ranked[begin:end]
        source, target = ([side[place] for place in places] for side in encoded)
        yield places, *padded(source, target)
