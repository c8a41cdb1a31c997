"""Layers of a Transformer (Vaswani et al. 2017), the norm before each sublayer as in the authors' later code."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Read = tuple[Tensor, Tensor]
"""Keys and values of what attention looks at, each ``(N, heads, S, width / heads)``."""


class Attention(nn.Module):
    """Multi-head attention.

    Args:
        width: of inputs and outputs; the heads share it equally.
        heads: their number.
        dropout: of attention weights, in training.

    Raises:
        ValueError: for a width that the heads cannot share.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width must be a multiple of heads, got width {width} and heads {heads}")
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)
        self._draw()

    def _draw(self) -> None:
        """Initial weights as torch.nn.MultiheadAttention's: Glorot and Bengio's for query, key and value as one matrix, no biases.

        One matrix has a smaller bound than its three parts one by one, which would make attention sharper at the start.
        """
        width = self.query.in_features
        bound = math.sqrt(6 / (width + 3 * width))
        for layer in (self.query, self.key_value):
            nn.init.uniform_(layer.weight, -bound, bound)
        nn.init.xavier_uniform_(self.output.weight)
        for layer in (self.query, self.key_value, self.output):
            nn.init.zeros_(layer.bias)

    def read(self, values: Tensor) -> Read:
        """Keys and values of ``(N, S, width)``; the queries themselves for self-attention."""
        key, value = map(self._split, self.key_value(values).chunk(2, dim=-1))
        return key, value

    def forward(self, queries: Tensor, read: Read, mask: Tensor | None = None, *, causal: bool = False) -> Tensor:
        """Attends from each query to the values that it may see.

        Args:
            queries: ``(N, T, width)``.
            read: of S values.
            mask: boolean ``(N, 1, 1, S)``, true where there is something to see; None where all may be seen.
            causal: whether position t sees positions up to t only; S is T then, and ``mask`` None.
        """
        query = self._split(self.query(queries))
        key, value = read
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, mask, dropout, is_causal=causal)
        output: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return output

    def _split(self, inputs: Tensor) -> Tensor:
        split: Tensor = inputs.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return split


class Past:
    """What the attention of several layers has read so far: a search goes on token by token, and reads none of them twice.

    Attributes:
        length: tokens read.
    """

    def __init__(self) -> None:
        self.length = 0
        self._read: dict[Attention, Read] = {}

    def grown(self, layer: Attention, values: Tensor) -> Read:
        """All that a layer has read, these values last."""
        key, value = layer.read(values)
        if layer in self._read:
            before = self._read[layer]
            key, value = torch.cat([before[0], key], dim=2), torch.cat([before[1], value], dim=2)
        self._read[layer] = key, value
        return key, value

    def once(self, layer: Attention, values: Tensor) -> Read:
        """What a layer reads of values that stay the same."""
        if layer not in self._read:
            self._read[layer] = layer.read(values)
        return self._read[layer]

    def take(self, rows: Tensor) -> None:
        """Goes on from these rows, int64 ``(M,)``, in the place of the N there were."""
        self._read = {layer: (key[rows], value[rows]) for layer, (key, value) in self._read.items()}


class Block(nn.Module):
    """Self-attention, attention to another sequence where there is one, and two linear layers, each added to its input.

    Args:
        width: of inputs and outputs.
        heads: of attention.
        hidden: width between the two linear layers.
        dropout: of attention weights and of what is added.
        cross: whether there is another sequence to attend to.
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, *, cross: bool = False) -> None:
        super().__init__()
        self.attend = Attention(width, heads, dropout)
        self.look = Attention(width, heads, dropout) if cross else None
        self.feed = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3 if cross else 2))
        self.dropout = nn.Dropout(dropout)
        # As torch.nn.Transformer has it.
        for weight in (parameter for parameter in self.feed.parameters() if parameter.dim() > 1):
            nn.init.xavier_uniform_(weight)

    def forward(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        *,
        causal: bool = False,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        past: Past | None = None,
    ) -> Tensor:
        """``(N, T, width)`` in and out; masks as in `Attention.forward`. With a past, what it holds stands before the inputs."""
        normed = self.norms[0](inputs)
        own = self.attend.read(normed) if past is None else past.grown(self.attend, normed)
        inputs = inputs + self.dropout(self.attend(normed, own, mask, causal=causal))
        if self.look is not None:
            assert memory is not None
            other = self.look.read(memory) if past is None else past.once(self.look, memory)
            inputs = inputs + self.dropout(self.look(self.norms[1](inputs), other, memory_mask))
        output: Tensor = inputs + self.dropout(self.feed(self.norms[-1](inputs)))
        return output


class Embedding(nn.Module):
    """Tokens as vectors times the square root of their width, plus sinusoidal positions; the same vectors read tokens out.

    Args:
        vocabulary: number of tokens.
        width: of the vectors.
        dropout: of the sum.
    """

    def __init__(self, vocabulary: int, width: int, dropout: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(vocabulary, width) * width**-0.5)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, start: int = 0) -> Tensor:
        """int64 ``(N, T)``, the first at position ``start`` → ``(N, T, width)``."""
        width = self.weight.shape[1]
        vectors = F.embedding(tokens, self.weight) * math.sqrt(width)
        places = sinusoids(start + tokens.shape[1], width, tokens.device)[start:]
        output: Tensor = self.dropout(vectors + places.to(vectors))
        return output

    def read(self, vectors: Tensor) -> Tensor:
        """Logits ``(N, T, vocabulary)``."""
        return F.linear(vectors, self.weight)


def sinusoids(length: int, width: int, device: torch.device | None = None) -> Tensor:
    """Positions as in Vaswani et al. 2017, section 3.5, float64 ``(length, width)``: sines and cosines in turn.

    Example:
        >>> sinusoids(2, 4)[0].tolist()
        [0.0, 1.0, 0.0, 1.0]
    """
    columns = torch.arange(0, width, 2, dtype=torch.float64, device=device)
    angles = torch.arange(length, device=device)[:, None] * torch.exp(columns * (-math.log(10000.0) / width))
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :width]
