"""Networks that predict the next token: an LSTM with carried state, and a Transformer that sees one window."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lookaround.tasks.language.carrying import Carried, State
from lookaround.tasks.text.layers import Block, Embedding


class Window(NamedTuple):
    """A piece of each of N texts side by side.

    Attributes:
        tokens: int64 ``(N, T)``.
        stream: which reading of the text this is: a branch's number, or -1 in an evaluation.
        position: of the window in the stream, from 0: a recurrent network goes on from the window before.
    """

    tokens: Tensor
    stream: int = -1
    position: int = 0


class Trained(NamedTuple):
    """What a network in training says of a window.

    Attributes:
        logits: ``(N, T, vocabulary)``, of the token after each.
        penalty: what the network adds to the mean loss.
    """

    logits: Tensor
    penalty: Tensor


@dataclass(frozen=True)
class LSTMSize:
    """An LSTM; the defaults are the small one of Zaremba et al. 2014, 2 layers of 200.

    The language models of Zhang et al. 2019, section 5.3, are ``embedding=400, hidden=1150, layers=3, dropout=0.4,
    dropout_input=0.65, dropout_hidden=0.3, dropout_words=0.1, weight_drop=0.5, activation=2, slowness=1``.

    Attributes:
        embedding: width of a token's vector; the last layer's too, as the vectors also read the tokens out.
        hidden: width of the other layers.
        layers: their number.
        dropout: of what the last layer says; the mask is the same at all positions of a window, as those below.
        dropout_input: of the tokens' vectors.
        dropout_hidden: between layers.
        dropout_words: of whole tokens of the vocabulary.
        weight_drop: of the recurrent weights.
        activation: α of the squared activations in the loss (Merity et al. 2017, section 4.6).
        slowness: β of the squared changes of activations in time.
    """

    embedding: int = 200
    hidden: int = 200
    layers: int = 2
    dropout: float = 0.2
    dropout_input: float = 0.2
    dropout_hidden: float = 0.2
    dropout_words: float = 0.0
    weight_drop: float = 0.0
    activation: float = 0.0
    slowness: float = 0.0


@dataclass(frozen=True)
class TransformerSize:
    """A decoder-only Transformer.

    Attributes:
        width: of its vectors.
        layers: number of blocks.
        heads: of attention in each.
        hidden: width between the two linear layers of a block.
        dropout: of vectors, attention weights and what blocks add.
    """

    width: int = 128
    layers: int = 2
    heads: int = 4
    hidden: int = 512
    dropout: float = 0.1


class LSTM(nn.Module):
    """An LSTM over tokens that carries its state from window to window of a stream (truncated backpropagation).

    The state is no buffer: an average of weights leaves it alone, as each stream's is its own. It is part of ``state_dict()``.

    Args:
        vocabulary: number of tokens.
        size: of the network.

    Example:
        >>> network = LSTM(10, LSTMSize(embedding=4, hidden=4, layers=1)).eval()
        >>> tokens = torch.tensor([[3, 1, 4, 1, 5, 9]])
        >>> whole = network(Window(tokens))
        >>> parts = [network(Window(tokens[:, :3])), network(Window(tokens[:, 3:], position=1))]
        >>> torch.allclose(torch.cat(parts, 1), whole, atol=1e-6)
        True
    """

    def __init__(self, vocabulary: int, size: LSTMSize) -> None:
        super().__init__()
        self.size = size
        self.vectors = nn.Parameter(torch.empty(vocabulary, size.embedding).uniform_(-0.1, 0.1))
        widths = [size.embedding, *[size.hidden] * (size.layers - 1), size.embedding]
        self.widths = widths[1:]
        self.layers = nn.ModuleList(nn.LSTM(before, after, batch_first=True) for before, after in pairwise(widths))
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        self.carried = Carried()

    def forward(self, window: Window) -> Tensor | Trained:
        """Logits ``(N, T, vocabulary)`` of the token after each; in training, with the penalty on activations."""
        before = self.carried.before(window.stream, window.position) or self.initial(len(window.tokens))
        output, after = self.recur(window.tokens, before)
        self.carried.keep(window.stream, window.position, before, after)
        dropped = locked_dropout(output, self.size.dropout, self.training)
        logits = self.read(dropped)
        return Trained(logits, self._penalty(output, dropped)) if self.training else logits

    def initial(self, texts: int) -> State:
        """The state before a text, of so many texts: zeros."""
        zeros = [self.vectors.new_zeros(1, texts, width) for width in self.widths]
        return tuple(zero for layer in zeros for zero in (layer, layer))

    def recur(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Tokens ``(N, T)`` read after what left ``state``: the last layer's output ``(N, T, width)``, and the state after them."""
        return self._recur(self._embed(tokens), state)

    def read(self, vectors: Tensor) -> Tensor:
        """Logits ``(N, T, vocabulary)``."""
        return F.linear(vectors, self.vectors, self.bias)

    def _embed(self, tokens: Tensor) -> Tensor:
        vectors: Tensor = self.vectors
        if self.training and self.size.dropout_words:
            vectors = vectors * F.dropout(vectors.new_ones(len(vectors), 1), self.size.dropout_words)
        return F.embedding(tokens, vectors)

    def _recur(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        after: list[Tensor] = []
        for depth, layer in enumerate(self.layers):
            rate = self.size.dropout_hidden if depth else self.size.dropout_input
            inputs = locked_dropout(inputs, rate, self.training)
            inputs, *own = self._layer(layer, inputs, (state[2 * depth], state[2 * depth + 1]))
            after += own
        return inputs, tuple(after)

    def _layer(self, layer: nn.Module, inputs: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        dropping = self.training and self.size.weight_drop
        # What exports a program warns that nn.LSTM keeps its weights in a list beside its parameters.
        if not dropping and not torch.compiler.is_exporting():
            output, (hidden, cell) = layer(inputs, state)
            return output, hidden, cell
        weights: list[Any] = [layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0]
        if dropping:
            weights[1] = F.dropout(weights[1], self.size.weight_drop)
        # The function under nn.LSTM: it takes weights, so that dropped ones need not be put into the module.
        said: Any = torch.lstm(inputs, list(state), weights, True, 1, 0.0, self.training, False, True)
        return said[0], said[1], said[2]

    def _penalty(self, output: Tensor, dropped: Tensor) -> Tensor:
        size, zero = self.size, output.new_zeros(())
        penalty = size.activation * dropped.square().mean() if size.activation else zero
        if size.slowness and output.shape[1] > 1:
            penalty = penalty + size.slowness * output.diff(dim=1).square().mean()
        return penalty

    def get_extra_state(self) -> Tensor:
        """What is carried, as one tensor."""
        return self.carried.packed()

    def set_extra_state(self, state: Tensor) -> None:
        """Goes on with what was carried."""
        self.carried.unpack(state, self.vectors)


class Transformer(nn.Module):
    """A Transformer over one window of tokens, each of which sees those before it and itself.

    Args:
        vocabulary: number of tokens.
        size: of the network.

    Raises:
        ValueError: for a width that is no multiple of heads.
    """

    def __init__(self, vocabulary: int, size: TransformerSize) -> None:
        super().__init__()
        self.embedding = Embedding(vocabulary, size.width, size.dropout)
        self.blocks = nn.ModuleList(
            Block(size.width, size.heads, size.hidden, size.dropout) for _ in range(size.layers)
        )
        self.norm = nn.LayerNorm(size.width)

    def forward(self, window: Window) -> Tensor | Trained:
        """Logits ``(N, T, vocabulary)`` of the token after each; in training, with a penalty of 0."""
        vectors = self.embedding(window.tokens)
        for block in self.blocks:
            vectors = block(vectors, causal=True)
        logits: Tensor = self.embedding.read(self.norm(vectors))
        return Trained(logits, logits.new_zeros(())) if self.training else logits


def locked_dropout(inputs: Tensor, probability: float, training: bool) -> Tensor:
    """Dropout of ``(N, T, width)`` whose mask is the same at all T positions (Gal and Ghahramani 2016)."""
    if not (training and probability):
        return inputs
    return inputs * F.dropout(inputs.new_ones(inputs.shape[0], 1, inputs.shape[2]), probability)


def build(size: LSTMSize | TransformerSize, vocabulary: int) -> LSTM | Transformer:
    """The network of that size, its initial weights drawn from torch's global generator."""
    return LSTM(vocabulary, size) if isinstance(size, LSTMSize) else Transformer(vocabulary, size)
