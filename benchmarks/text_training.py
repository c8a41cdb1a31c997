"""Tokens per second of a run of lookaround train against a bare loop of the same network, on text drawn at random.

The bare loop has its batches ready and does nothing but forward, backward, clipping and step. What is measured of a run is its own
training loop: the copy of each minibatch is drawn, the learning rate set, the loss looked at. Both run in one thread, whose processor
time counts: other programs on the machine take none of it.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from benchmarks.harness import interleave, machine, table
from lookaround.experiment import Plan
from lookaround.experiment.display import Lines
from lookaround.experiment.running import prepare
from lookaround.experiment.training import Training

STEPS = 5  # of a round of Lookaround, its average included
WORDS = 4000
TASKS = {
    "LSTM": {"task": "language", "width": 128, "layers": 1, "window": 35},
    "Transformer, next token": {"task": "language", "network": "transformer", "window": 64, "clip": 1.0},
    "Transformer, translation": {
        "task": "translation",
        "source": "en",
        "target": "de",
        "vocabulary": 2000,
        "hidden": 256,
    },
}


def write_text(folder: Path) -> None:
    """Sentences of words of Zipf's frequencies."""
    drawn = random.Random(0)
    weights = [1 / (rank + 1) for rank in range(WORDS)]
    for part, lines in (("train", 6000), ("valid", 50), ("test", 50)):
        for ending in ("txt", "en", "de"):
            said = (
                " ".join(f"w{w}" for w in drawn.choices(range(WORDS), weights, k=drawn.randint(6, 16)))
                for _ in range(lines)
            )
            (folder / f"{part}.{ending}").write_text("<unk> " + "\n".join(said) + "\n")


def training(folder: Path, options: dict[str, object], method: str) -> Training:
    """A run at its start."""
    ending = {} if options["task"] == "translation" else {"ending": "txt", "min_count": 2}
    whole = {**options, **ending, "root": str(folder), "methods": [method], "device": "cpu", "epochs": 10}
    plan = Plan.from_options(whole)
    return Training(prepare(plan), plan.methods[0], 0, folder, Lines(lambda line: None))


def run_of(method: Training) -> Callable[[], None]:
    """So many minibatches of a run, always the same ones: those of a translation differ in length."""
    method.display.begin(1)
    method.display.run("", 0, method.total)

    def run() -> None:
        method.step = 0
        while method.step < STEPS:
            method._train(method._next(STEPS))

    return run


def bare(method: Training) -> Callable[[], None]:
    """As many gradients by hand, on the same copies, drawn before."""
    task, model = method.task, method.task.network().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    d = method.batches.branches
    copies = [method.batches.copy(position, branch) for position in range(STEPS) for branch in range(d)]

    def run() -> None:
        for copy in copies:
            loss = task.loss(model, copy)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), task.clip or 1e9)
            optimizer.step()

    return run


def main(repeats: int = 5) -> None:
    """Print milliseconds and ratios; the ratio of tokens per second is the inverse of that of times."""
    torch.set_num_threads(1)
    print(f"\n== training on text, {STEPS} minibatches in three copies ({machine()})")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_text(folder)
        for title, options in TASKS.items():
            runs = {method: training(folder, options, method) for method in ("adamw", "lookaround")}
            candidates = {
                "a bare loop": bare(runs["adamw"]),
                **{f"lookaround train, {m}": run_of(r) for m, r in runs.items()},
            }
            times = interleave(candidates, repeats, clock=time.thread_time)
            table(title, [*times.items()], "a bare loop")
            for name_, seconds in list(times.items())[1:]:
                print(f"  tokens per second, {name_}: {times['a bare loop'] / seconds:.3f} x")


if __name__ == "__main__":
    main()
