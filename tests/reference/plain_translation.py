"""Translation out of torch.nn's own parts: the network, the loss and the loop, with nothing of the package under test.

The network is torch.nn.Transformer, norm first, around one embedding with the positions of Vaswani et al. 2017, section 3.5, written as
they are printed. The loss is written out as its formula; the loop is the plain one.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

PAD = 0
IGNORED = -100


def positions(length: int, width: int) -> Tensor:
    """PE(pos, 2i) = sin(pos / 10000^(2i/width)), PE(pos, 2i + 1) = cos of the same."""
    table = torch.zeros(length, width, dtype=torch.float64)
    for place in range(length):
        for column in range(width):
            angle = place / 10000 ** (2 * (column // 2) / width)
            table[place, column] = math.cos(angle) if column % 2 else math.sin(angle)
    return table


class PlainTranslator(nn.Module):
    """Initial weights as torch.nn draws them; an embedding of deviation 1/sqrt(width)."""

    def __init__(self, words: int, width: int, layers: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        how = {"dropout": dropout, "batch_first": True, "norm_first": True}
        layer = nn.TransformerEncoderLayer(width, heads, hidden, **how)
        # Made here, as the one that nn.Transformer makes warns of a faster way that it then does not take.
        encoder = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.body = nn.Transformer(width, heads, layers, layers, hidden, custom_encoder=encoder, **how)
        self.dropout = nn.Dropout(dropout)

    def embed(self, tokens: Tensor) -> Tensor:
        vectors = self.embedding(tokens) * math.sqrt(self.embedding.embedding_dim)
        return self.dropout(vectors + positions(tokens.shape[1], vectors.shape[2]).to(vectors))

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        future = torch.ones(target.shape[1], target.shape[1], dtype=torch.bool).triu(1)
        blank = source == PAD
        said = self.body(
            self.embed(source),
            self.embed(target),
            tgt_mask=future,
            src_key_padding_mask=blank,
            memory_key_padding_mask=blank,
        )
        return said @ self.embedding.weight.T


def smoothed_loss(logits: Tensor, targets: Tensor, share: float) -> Tensor:
    """Mean over the targets that are not padding of -(1 - share) log p(target) - share · mean over all words of log p(word)."""
    kept = targets != IGNORED
    logs = logits.log_softmax(-1)[kept]
    own = logs.gather(1, targets[kept][:, None])[:, 0]
    return -((1 - share) * own + share * logs.mean(1)).mean()


def trained(
    model: PlainTranslator,
    minibatches: Sequence[tuple[Tensor, Tensor, Tensor]],
    rates: Sequence[float],
    *,
    adamw: Mapping[str, object],
    share: float,
    clip: float,
) -> Iterator[float]:
    """The loss of each minibatch (source, target, wanted), before the step on it."""
    optimizer = torch.optim.AdamW(model.parameters(), **adamw)
    model.train()
    for (source, target, wanted), rate in zip(minibatches, rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = smoothed_loss(model(source, target), wanted, share)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        yield loss.item()


def take(plain: PlainTranslator, own: nn.Module) -> None:
    """Copies the weights of the package's network, found by their names, into the plain one's."""
    weights = own.state_dict()
    names = {
        "embedding.weight": ["embedding.weight"],
        **{
            f"body.{side}.norm.{kind}": [f"norms.{i}.{kind}"]
            for i, side in enumerate(("encoder", "decoder"))
            for kind in KINDS
        },
    }
    for side, attentions in (
        ("encoder", {"self_attn": "attend"}),
        ("decoder", {"self_attn": "attend", "multihead_attn": "look"}),
    ):
        for layer in range(len(getattr(own, side))):
            names |= layer_names(f"body.{side}.layers.{layer}", f"{side}.{layer}", attentions)
    plain.load_state_dict({name: torch.cat([weights.pop(part) for part in parts]) for name, parts in names.items()})
    assert not weights, f"left: {list(weights)}"


KINDS = ("weight", "bias")


def layer_names(plain: str, own: str, attentions: Mapping[str, str]) -> dict[str, list[str]]:
    names = {}
    for kind in KINDS:
        for theirs, ours in attentions.items():
            names[f"{plain}.{theirs}.in_proj_{kind}"] = [f"{own}.{ours}.query.{kind}", f"{own}.{ours}.key_value.{kind}"]
            names[f"{plain}.{theirs}.out_proj.{kind}"] = [f"{own}.{ours}.output.{kind}"]
        names |= {f"{plain}.linear{i}.{kind}": [f"{own}.feed.{j}.{kind}"] for i, j in ((1, 0), (2, 3))}
        names |= {f"{plain}.norm{i + 1}.{kind}": [f"{own}.norms.{i}.{kind}"] for i in range(len(attentions) + 1)}
    return names
