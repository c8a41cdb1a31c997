"""Text models trained by hand: torch.nn's own layers in a plain loop, without a line of lookaround.

    python -m benchmarks.plain_text language ROOT --seeds 0 1 2
    python -m benchmarks.plain_text translation ROOT --seeds 0 1 2

What ``lookaround train`` reaches with plain AdamW has to be what this reaches with the same sizes and budget, within the spread over
seeds; a wrong mask, a leaked target or a miscounted token would show. The networks are written anew for that reason, too.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PAD, BEGIN, END = 0, 1, 2


class PlainLSTM(nn.Module):
    """Embedding, LSTM, and the embedding again to read out; dropout before and after the LSTM, one mask a window."""

    def __init__(self, words: int, width: int, dropout: float) -> None:
        super().__init__()
        self.table = nn.Embedding(words, width)
        nn.init.uniform_(self.table.weight, -0.1, 0.1)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.bias = nn.Parameter(torch.zeros(words))
        self.rate = dropout

    def forward(self, tokens: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Logits and the state after the window."""
        output, state = self.lstm(self._drop(self.table(tokens)), state)
        return self._drop(output) @ self.table.weight.T + self.bias, state

    def _drop(self, inputs: Tensor) -> Tensor:
        mask = F.dropout(torch.ones(len(inputs), 1, inputs.shape[2]), self.rate, self.training)
        return inputs * mask


class PlainTranslator(nn.Module):
    """torch.nn.Transformer, norm first, around one embedding with sinusoidal positions."""

    def __init__(self, words: int, width: int, layers: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.table = nn.Embedding(words, width)
        nn.init.normal_(self.table.weight, std=width**-0.5)
        layer = nn.TransformerEncoderLayer(width, 4, hidden, dropout, batch_first=True, norm_first=True)
        encoder = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        how = {"custom_encoder": encoder, "batch_first": True, "norm_first": True}
        self.body = nn.Transformer(width, 4, layers, layers, hidden, dropout, **how)
        self.drop = nn.Dropout(dropout)
        place = torch.arange(512)[:, None] / 10000 ** (torch.arange(0, width, 2) / width)
        self.register_buffer("places", torch.stack([place.sin(), place.cos()], 2).flatten(1))

    def embed(self, tokens: Tensor) -> Tensor:
        """Vectors with their places."""
        scaled = self.table(tokens) * math.sqrt(self.table.embedding_dim)
        return self.drop(scaled + self.places[: tokens.shape[1]])

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Logits of the token after each of the target's."""
        causal = torch.ones(target.shape[1], target.shape[1], dtype=torch.bool).triu(1)
        blank = source == PAD
        said = self.body(
            self.embed(source),
            self.embed(target),
            tgt_mask=causal,
            src_key_padding_mask=blank,
            memory_key_padding_mask=blank,
        )
        return said @ self.table.weight.T


def rate(step: int, total: int, warmup: int) -> float:
    """Linear up, half a cosine down."""
    return (step + 1) / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def words_of(folder: Path, min_count: int) -> tuple[list[list[int]], int]:
    """Three streams of word numbers, four fifths, a tenth and a tenth of the lines of the folder's two texts."""
    lines = [line.split() for name in ("valid", "test") for line in (folder / f"ptb.{name}.txt").open(encoding="utf-8")]
    a, b = round(0.8 * len(lines)), round(0.9 * len(lines))
    counts = Counter(word for line in lines[:a] for word in line)
    known = {
        w: i for i, w in enumerate(["<unk>", "<eos>", *(w for w in counts if counts[w] >= min_count and w != "<unk>")])
    }
    return [
        [1, *(known.get(w, 0) for line in part for w in [*line, "<eos>"])]
        for part in (lines[:a], lines[a:b], lines[b:])
    ], len(known)


def train_language(options: argparse.Namespace, seed: int) -> str:
    """Perplexity on the test part."""
    (train, _, test), words = words_of(options.root, options.min_count)
    torch.manual_seed(seed)
    model = PlainLSTM(words, options.width, options.dropout)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=1e-2)
    steps = (len(train) - 1) // (20 * 35)
    total, done = options.passes * steps, 0
    for _ in range(options.passes):
        start = int(torch.randint(len(train), ()))
        ring = torch.tensor(train[start:] + train[:start])[: 20 * 35 * steps + 1]
        rows, wanted, state = ring[:-1].view(20, -1), ring[1:].view(20, -1), None
        for begin in range(0, 35 * steps, 35):
            for group in optimizer.param_groups:
                group["lr"] = options.lr * rate(done, total, max(1, round(options.warmup * total)))
            logits, state = model(rows[:, begin : begin + 35], state)
            state = (state[0].detach(), state[1].detach())
            loss = F.cross_entropy(logits.flatten(0, 1), wanted[:, begin : begin + 35].flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.25)
            optimizer.step()
            done += 1
    model.eval()
    with torch.no_grad():
        logits, _ = model(torch.tensor(test[:-1])[None], None)
        loss = F.cross_entropy(logits[0], torch.tensor(test[1:])).item()
    return f"perplexity {math.exp(loss):.2f}, loss {loss:.4f}"


def batches_of(lengths: list[int], tokens: int) -> list[list[int]]:
    """Pairs of like length, as many as fit, in random order."""
    order = sorted(torch.randperm(len(lengths)).tolist(), key=lengths.__getitem__)
    batches: list[list[int]] = [[]]
    for place in order:
        if (len(batches[-1]) + 1) * lengths[place] > tokens:
            batches.append([])
        batches[-1].append(place)
    return [batches[place] for place in torch.randperm(len(batches)).tolist()]


def padded(lines: list[list[int]]) -> Tensor:
    """One tensor."""
    return nn.utils.rnn.pad_sequence([torch.tensor(line) for line in lines], batch_first=True, padding_value=PAD)


def train_translation(options: argparse.Namespace, seed: int) -> str:
    """BLEU and chrF of greedy translations of the test set, and its loss."""
    import sacrebleu
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    texts = {
        part: [(options.root / f"{part}.{side}").read_text(encoding="utf-8").splitlines() for side in ("en", "de")]
        for part in ("train", "test_2016_flickr")
    }
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=options.vocabulary,
        special_tokens=["<p>", "<b>", "<e>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts["train"][0] + texts["train"][1], trainer)
    source, target = ([encoding.ids for encoding in tokenizer.encode_batch(side)] for side in texts["train"])
    lengths = [max(len(one), len(other)) + 1 for one, other in zip(source, target, strict=True)]
    torch.manual_seed(seed)
    model = PlainTranslator(
        tokenizer.get_vocab_size(), options.width, options.layers, 4 * options.width, options.dropout
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, betas=(0.9, 0.98), weight_decay=1e-2)
    plan = [batch for _ in range(options.passes) for batch in batches_of(lengths, 2000)]
    for step, batch in enumerate(plan):
        for group in optimizer.param_groups:
            group["lr"] = options.lr * rate(step, len(plan), max(1, round(options.warmup * len(plan))))
        read = padded([source[place] + [END] for place in batch])
        said = padded([[BEGIN, *target[place]] for place in batch])
        wanted = padded([target[place] + [END] for place in batch])
        logits = model(read, said).flatten(0, 1)
        loss = F.cross_entropy(logits, wanted.flatten(), ignore_index=PAD, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    read, wanted = ([encoding.ids for encoding in tokenizer.encode_batch(side)] for side in texts["test_2016_flickr"])
    found, total = [], 0.0
    for begin in range(0, len(read), 50):
        source = padded([[*line, END] for line in read[begin : begin + 50]])
        total += said_at_all(model, source, wanted[begin : begin + 50])
        found += [tokenizer.decode(line).strip() for line in greedy(model, source)]
    references = [texts["test_2016_flickr"][1]]
    bleu = sacrebleu.corpus_bleu(found, references, tokenize="none", force=True)
    chrf = sacrebleu.corpus_chrf(found, references)
    mean = total / sum(len(line) + 1 for line in wanted)
    return f"BLEU {bleu.score:.2f}, chrF {chrf.score:.2f}, loss {mean:.4f}"


@torch.no_grad()
def said_at_all(model: PlainTranslator, source: Tensor, wanted: list[list[int]]) -> float:
    """The negative log-likelihood of translations, in nats."""
    logits = model(source, padded([[BEGIN, *line] for line in wanted])).flatten(0, 1)
    targets = padded([[*line, END] for line in wanted]).flatten()
    return F.cross_entropy(logits, targets, ignore_index=PAD, reduction="sum").item()


@torch.no_grad()
def greedy(model: PlainTranslator, source: Tensor) -> list[list[int]]:
    """The likeliest word each time, of every sentence until it ends or is 50 words longer than its source."""
    said = torch.full((len(source), 1), BEGIN)
    longest = (source != PAD).sum(1) + 50
    going = torch.ones(len(source), dtype=torch.bool)
    while going.any():
        words = model(source, said)[:, -1, 1:].argmax(1) + 1
        said = torch.cat([said, words.where(going, PAD)[:, None]], 1)
        going &= (words != END) & (said.shape[1] - 1 < longest)
    return [[word for word in row if word > END] for row in said.tolist()]


def main() -> None:
    """Trains with each seed and prints what it reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("language", "translation"))
    parser.add_argument("root", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--passes", type=int, default=6)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--min-count", type=int, default=3)
    parser.add_argument("--vocabulary", type=int, default=2000)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--warmup", type=float, default=0.1, help="part of the run")
    options = parser.parse_args()
    for seed in options.seeds:
        begin = time.perf_counter()
        run = train_language if options.task == "language" else train_translation
        print(f"seed {seed}: {run(options, seed)}, {time.perf_counter() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
