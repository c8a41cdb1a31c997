"""The encoder-decoder Transformer (Vaswani et al. 2017), which Zhang et al. 2019, section 5.4, train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from lookaround.tasks.text.layers import Block, Embedding, Past
from lookaround.tasks.text.subwords import PAD


@dataclass(frozen=True)
class TranslatorSize:
    """Sizes of the network; the base model of Vaswani et al. is ``width=512, layers=6, heads=8, hidden=2048``.

    Attributes:
        width: of its vectors.
        layers: number of the encoder's blocks and of the decoder's.
        heads: of attention in each.
        hidden: width between the two linear layers of a block.
        dropout: of vectors, attention weights and what blocks add.
    """

    width: int = 128
    layers: int = 2
    heads: int = 4
    hidden: int = 256
    dropout: float = 0.1


@dataclass
class Memory:
    """What a network has made of the sentences of a search so far.

    Attributes:
        source: vectors ``(N, S, width)``.
        past: what the decoder has read of the translations.
    """

    source: Tensor
    past: Past


class Sentences(NamedTuple):
    """What the network reads.

    Attributes:
        source: int64 ``(N, S)``, each with its end mark, then padding.
        target: int64 ``(N, T)``, the begin mark and as much of the translation as there is, then padding, which comes after
            everything that it could disturb.
        memory: of each network, in a search, whose next call has the same rows and a token more, or those rows that
            `Memory.past` was told to take; None computes everything anew.
    """

    source: Tensor
    target: Tensor
    memory: dict[nn.Module, Memory] | None = None


class Translator(nn.Module):
    """An encoder-decoder Transformer with one vocabulary for both languages, whose vectors also read the tokens out.

    Args:
        vocabulary: number of tokens; the first pads.
        size: of the network.

    Raises:
        ValueError: for a width that is no multiple of heads.

    Example:
        >>> import torch
        >>> network = Translator(300, TranslatorSize(width=16, layers=1, heads=2, hidden=32)).eval()
        >>> source, target = torch.tensor([[5, 6, 7, 0]]), torch.tensor([[1, 8]])
        >>> tuple(network(Sentences(source, target)).shape)
        (1, 2, 300)
    """

    def __init__(self, vocabulary: int, size: TranslatorSize) -> None:
        super().__init__()
        width, heads, hidden, dropout = size.width, size.heads, size.hidden, size.dropout
        self.embedding = Embedding(vocabulary, width, dropout)
        self.encoder = nn.ModuleList(Block(width, heads, hidden, dropout) for _ in range(size.layers))
        self.decoder = nn.ModuleList(Block(width, heads, hidden, dropout, cross=True) for _ in range(size.layers))
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])

    def forward(self, sentences: Sentences) -> Tensor:
        """Logits of the token after each of the target's: ``(N, T, vocabulary)``; after the last only, ``(N, 1, vocabulary)``, in a
        search, which gives a memory."""
        source, target, kept = sentences
        if kept is None:
            return self.embedding.read(self.decode(target, self.encode(source), visible(source)))
        memory = kept.get(self)
        if memory is None:
            memory = kept[self] = Memory(self.encode(source), Past())
        return self.embedding.read(self.decode(target, memory.source, visible(source), memory.past)[:, -1:])

    def encode(self, source: Tensor) -> Tensor:
        """The source as vectors ``(N, S, width)``."""
        vectors, mask = self.embedding(source), visible(source)
        for block in self.encoder:
            vectors = block(vectors, mask)
        encoded: Tensor = self.norms[0](vectors)
        return encoded

    def decode(self, target: Tensor, memory: Tensor, mask: Tensor, past: Past | None = None) -> Tensor:
        """What reads out the token after each of ``target``, or after each that is not in its past: ``(N, T, width)``.

        Args:
            target: as in `forward`.
            memory: what `encode` made of the source.
            mask: `visible` of the source.
            past: of the target's first tokens, to which the others are added: all at once, or one.
        """
        before = 0 if past is None else past.length
        vectors = self.embedding(target[:, before:], start=before)
        for block in self.decoder:
            vectors = block(vectors, causal=not before, memory=memory, memory_mask=mask, past=past)
        if past is not None:
            assert not before or target.shape[1] == before + 1
            past.length = target.shape[1]
        decoded: Tensor = self.norms[1](vectors)
        return decoded


def visible(source: Tensor) -> Tensor:
    """The mask that hides padding from attention: boolean ``(N, 1, 1, S)``."""
    return (source != PAD)[:, None, None, :]
