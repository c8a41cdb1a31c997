"""From a network's probabilities to sentences: greedy and beam search, by one network or the mean of several."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lookaround.tasks.text.subwords import BEGIN, END, PAD
from lookaround.tasks.translation.network import Memory, Sentences

Predict = Callable[[Sentences], Tensor]


@dataclass(frozen=True)
class Search:
    """How translations are searched for.

    Attributes:
        beam: hypotheses kept of each sentence; 1 is greedy search.
        length_penalty: α of the score log p / ((5 + length) / 6)^α (Wu et al. 2016, equation 14); ignored with one hypothesis.
        longer: tokens by which a translation may be longer than its source.
    """

    beam: int = 1
    length_penalty: float = 0.6
    longer: int = 50


@torch.inference_mode()
def translate(predict: Predict, source: Tensor, search: Search) -> list[list[int]]:
    """The likeliest translation found for each sentence.

    Every hypothesis is extended by every token, those that have ended by nothing, and of all that come from one sentence the best
    ``beam`` are kept, until all of them have ended.

    Args:
        predict: a `Translator` in evaluation mode, or the mean of several's logits.
        source: int64 ``(N, S)``, each sentence with its end mark, then padding.
        search: how.

    Returns:
        The tokens of each translation, begin and end left out.
    """
    # The hypotheses of a sentence stand side by side and share it, so what a network makes of it serves them wherever they move.
    sources = source.repeat_interleave(search.beam, 0)
    beams = _Beams(source, search)
    memory: dict[nn.Module, Memory] = {}
    for _ in range(source.shape[1] + search.longer):
        logits = predict(Sentences(sources, beams.tokens, memory))
        rows = beams.extend(logits[:, -1].float().log_softmax(-1))
        if beams.ended.all():
            break
        if search.beam > 1:
            for kept in memory.values():
                kept.past.take(rows)
    return beams.best()


class _Beams:
    """The hypotheses of N sentences: ``beam`` rows of each, one sentence after the other."""

    def __init__(self, source: Tensor, search: Search) -> None:
        shape = (len(source), search.beam)
        self.search = search
        self.tokens = source.new_full((shape[0] * shape[1], 1), BEGIN)
        # At first a sentence's hypotheses are all the same one; only the first may be extended.
        self.scores = torch.full(shape, -math.inf, device=source.device)
        self.scores[:, 0] = 0
        self.ended = torch.zeros(shape, dtype=torch.bool, device=source.device)
        self.lengths = torch.zeros(shape, device=source.device)
        # Each sentence's own: padding to the longest beside it must not let its translation go on.
        self.longest = (source != PAD).sum(1, keepdim=True) + search.longer

    def extend(self, said: Tensor) -> Tensor:
        """Goes on by a token, given the log-probabilities of all: ``(rows, vocabulary)``; the row that each one comes from."""
        sentences, beam = self.scores.shape
        vocabulary = said.shape[1]
        said = said.view(sentences, beam, vocabulary).masked_fill(self.ended[..., None], -math.inf)
        said[..., PAD] = torch.where(self.ended, 0.0, -math.inf)
        scores = self.scores[..., None] + said
        lengths = self.lengths + (~self.ended).float()
        ranked = (scores / self._penalty(lengths)[..., None]).flatten(1).topk(beam).indices
        parents, tokens = ranked // vocabulary, ranked % vocabulary
        self.scores = scores.flatten(1).gather(1, ranked)
        self.lengths = lengths.gather(1, parents)
        self.ended = self.ended.gather(1, parents) | (tokens == END) | (self.lengths >= self.longest)
        rows = (parents + torch.arange(sentences, device=said.device)[:, None] * beam).flatten()
        self.tokens = torch.cat([self.tokens[rows], tokens.view(-1, 1)], dim=1)
        return rows

    def _penalty(self, lengths: Tensor) -> Tensor:
        if self.search.beam == 1:
            return torch.ones_like(lengths)
        return ((5 + lengths) / 6) ** self.search.length_penalty

    def best(self) -> list[list[int]]:
        """The first hypothesis of each sentence, up to its end."""
        rows = self.tokens.view(*self.scores.shape, -1)[:, 0, 1:].tolist()
        return [[token for token in row if token not in (END, PAD)] for row in rows]
