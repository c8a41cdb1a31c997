"""Does averaging pay around AdamW on text? A character Transformer on one side of a folder of sentence pairs (Multi30k).

Each call trains one setting with some seeds and appends a row a seed and network to a CSV file: the weights as trained, and the
running averages that were collected beside them in the same run, which cost no training of their own. Rows that the file holds
already are not computed again, so a list of calls can be cut short and repeated.

    python recipes/lookahead_text.py multi30k --out docs/results/text.csv --method lookahead --lr 0.01 --seeds 100 101 102

Rates are chosen by the loss on ``val``; what is reported is the loss on ``test``, with seeds that chose nothing. ``--report`` prints
the table of those, as far as the file holds them: every setting against one, paired by seed.
"""

import argparse
import csv
import math
import statistics
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lookaround import Lookahead, Lookaround
from lookaround.averaging import RunningAverage, exponential, tail
from lookaround.experiment.compare import paired_difference

LENGTH = 64
FIELDS = ["method", "width", "batch", "steps", "lr", "beta1", "schedule", "seed", "weights", "step", "valid", "test"]
AVERAGES = {
    "ema-0.99": exponential(0.99, warmup=2 / 3),
    "ema-0.998": exponential(0.998, warmup=2 / 3),
    "tail-0.2": tail(0.2),
    "tail-0.5": tail(0.5),
}
POINTS = 4


class Block(nn.Module):
    """Causal self-attention and a feed-forward layer, normalized before each."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.inwards, self.outwards = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        parts = self.inwards(self.norms[0](x)).unflatten(-1, (3, self.heads, -1)).transpose(1, 3).unbind(2)
        mixed = F.scaled_dot_product_attention(*parts, is_causal=True)
        x = x + self.outwards(mixed.transpose(1, 2).flatten(-2))
        return x + self.feed(self.norms[1](x))


class Transformer(nn.Module):
    """Four blocks over learned positions; logits of the next character."""

    def __init__(self, characters: int, width: int, blocks: int = 4) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(characters, width), nn.Embedding(LENGTH, width)
        self.blocks = nn.Sequential(*(Block(width, width // 16) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, characters)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.place.weight[: tokens.shape[1]]
        return self.head(self.norm(self.blocks(x)))


def read(root: Path) -> dict[str, Tensor]:
    """The three parts of the English side as character indices; characters never trained on share the last index."""
    names = {"train": "train.en", "valid": "val.en", "test": "test_2016_flickr.en"}
    texts = {part: (root / name).read_text(encoding="utf-8") for part, name in names.items()}
    index = {character: i for i, character in enumerate(sorted(set(texts["train"])))}
    return {part: torch.tensor([index.get(c, len(index)) for c in text]) for part, text in texts.items()}


def loss(model: nn.Module, tokens: Tensor) -> Tensor:
    """Mean negative log-likelihood of the characters after the first, in nats; ``tokens`` is ``(rows, LENGTH + 1)``."""
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


@torch.no_grad()
def evaluate(model: nn.Module, text: Tensor, rows: int | None = None) -> float:
    """The loss over consecutive windows of a text, or of its first ``rows`` windows."""
    windows = text.unfold(0, LENGTH + 1, LENGTH)[:rows]
    total = sum(float(loss(model, part)) * len(part) for part in windows.split(128))
    return total / len(windows)


def batches(text: Tensor, size: int, steps: int, seed: int):
    """Random windows of the training text, the same for every method with one seed."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        at = torch.randint(len(text) - LENGTH, (size, 1), generator=generator)
        yield text[at + torch.arange(LENGTH + 1)]


def factor(schedule: str, step: int, steps: int) -> float:
    """Linear warm-up over a twentieth of the run; then a cosine to 0, or constant."""
    warm = min(1.0, (step + 1) / max(1, steps // 20))
    return warm if schedule == "constant" else warm * 0.5 * (1 + math.cos(math.pi * step / steps))


def build(options: argparse.Namespace, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a method around AdamW."""
    inner = torch.optim.AdamW(model.parameters(), options.lr, (options.beta1, 0.99), weight_decay=0.01, foreach=True)
    name, *settings = options.method.split(":")
    words = {key: float(value) for key, value in (word.split("=") for word in settings)}
    if name == "lookahead":
        return Lookahead(inner, k=int(words.get("k", 5)), alpha=words.get("alpha", 0.8))
    if name == "lookaround":
        return Lookaround(inner, branches=int(words.get("branches", 3)), k=int(words.get("k", 5)))
    if name == "snoo":
        rate, momentum = words.get("rate", 0.7), words.get("momentum", 0.5)
        outer = lambda params: torch.optim.SGD(params, lr=rate, momentum=momentum, nesterov=True)  # noqa: E731
        return Lookahead(inner, k=int(words.get("k", 20)), outer=outer)
    return inner


def train(options: argparse.Namespace, data: dict[str, Tensor], seed: int) -> list[dict[str, object]]:
    """One run; its rows."""
    torch.manual_seed(seed)
    model = Transformer(int(data["train"].max()) + 2, options.width)
    optimizer = build(options, model)
    averages = RunningAverage(model, list(AVERAGES.values()), point=nullcontext)
    peaks = [group["lr"] for group in optimizer.param_groups]
    rows: list[dict[str, object]] = []
    for step, batch in enumerate(batches(data["train"], options.batch, options.steps, seed)):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * factor(options.schedule, step, options.steps)
        take(optimizer, model, batch)
        averages.update()
        if (step + 1) % (options.steps // POINTS) == 0:
            rows += measure(model, optimizer, averages, data, step + 1, last=step + 1 == options.steps)
    return rows


def take(optimizer: torch.optim.Optimizer, model: nn.Module, batch: Tensor) -> None:
    """One minibatch: whole for one trajectory, a part for each branch of Lookaround."""
    parts = batch.chunk(optimizer.branches) if isinstance(optimizer, Lookaround) else [batch]
    walk = optimizer.around() if isinstance(optimizer, Lookaround) else range(1)
    for branch in walk:
        optimizer.zero_grad()
        loss(model, parts[branch]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def measure(model, optimizer, averages, data, step: int, last: bool) -> list[dict[str, object]]:
    """The losses now: on a part of the validation text along the way, on all of validation and test at the end."""

    def both() -> dict[str, float]:
        return {
            "valid": evaluate(model, data["valid"], None if last else 256),
            "test": evaluate(model, data["test"]) if last else "",
        }

    end = optimizer.averaged() if hasattr(optimizer, "averaged") else torch.no_grad()
    with end:
        rows = [{"weights": "end", "step": step, **both()}]
    for index, name in enumerate(AVERAGES) if not isinstance(optimizer, Lookaround) else ():
        with averages.averaged(index):
            rows.append({"weights": name, "step": step, **both()})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, nargs="?", help="folder with train.en, val.en, test_2016_flickr.en")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--method", default="adamw", help="adamw, lookahead:k=5:alpha=0.8, snoo:k=20, lookaround:branches=3:k=5"
    )
    parser.add_argument("--lr", type=float, default=0.005)
    parser.add_argument("--beta1", type=float, default=0.9)
    parser.add_argument("--schedule", choices=["cosine", "constant"], default="cosine")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--report", metavar="SETTING", help="train nothing; print the table against, say, 'adamw, 0.01, 0.6'"
    )
    options = parser.parse_args()
    if options.report is not None:
        print("\n".join(report(options.out, options.report)))
        return
    data = read(options.root)
    for seed in options.seeds:
        own = {name: str(getattr(options, name)) for name in FIELDS[:7]} | {"seed": str(seed)}
        if not done(options.out, own):
            append(options.out, [{**own, **row} for row in train(options, data, seed)])


def report(path: Path, baseline: str) -> Iterator[str]:
    """Lines of Markdown: mean test loss at the end by setting and budget, seeds from 100 on, and the difference to a baseline."""
    yield f"| steps | method, rate, β₁ | seeds | test loss | minus that of {baseline}, paired, 95 % | p | lower on |"
    yield "| ---: | --- | ---: | ---: | ---: | ---: | ---: |"
    found: dict[str, dict[str, dict[int, float]]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["test"] and row["weights"] == "end" and int(row["seed"]) >= 100:
                name = f"{row['method']}, {row['lr']}, {row['beta1']}"
                found.setdefault(row["steps"], {}).setdefault(name, {})[int(row["seed"])] = float(row["test"])
    for steps, settings in sorted(found.items(), key=lambda item: int(item[0])):
        first = settings.get(baseline, {})
        for name, losses in settings.items():
            yield f"| {steps} | {name} | {len(losses)} | {spread(losses)} | {against(losses, first)} |"


def spread(losses: Mapping[int, float]) -> str:
    """Mean and, of several, standard deviation."""
    mean = f"{statistics.fmean(losses.values()):.4f}"
    return f"{mean} ± {statistics.stdev(losses.values()):.4f}" if len(losses) > 1 else mean


def against(losses: Mapping[int, float], first: Mapping[int, float]) -> str:
    """The paired difference with its interval, p value and signs, as cells; empty for the first itself."""
    if losses is first or not losses.keys() & first.keys():
        return " | | "
    found = paired_difference(losses, first)
    if found.interval is None or found.p is None:
        return f"{found.mean:+.4f} | | {found.below} of {len(found.seeds)}"
    half = found.interval[1] - found.mean
    return f"{found.mean:+.4f} ± {half:.4f} | {found.p:.3f} | {found.below} of {len(found.seeds)}"


def done(path: Path, own: dict[str, str]) -> bool:
    if not path.exists():
        return False
    with path.open(newline="") as file:
        return any(all(row[key] == value for key, value in own.items()) for row in csv.DictReader(file))


def append(path: Path, rows: list[dict[str, object]]) -> None:
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        if new:
            writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.6f}" if isinstance(v, float) else v for k, v in row.items()})


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
