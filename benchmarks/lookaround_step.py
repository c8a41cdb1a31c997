"""What d branches cost beyond d plain steps of the inner optimizer: time and memory, on a ResNet-18 as CIFAR uses it.

Time: a pass of Lookaround over three branches against three plain steps, on the same images; the average every k = 5 passes is part of it.
Processor time, on minibatches of 32, so that it ends in minutes on one thread; larger ones bring the ratio nearer to one.
Memory: d sets of weights and inner state, and the activations of one branch, are what the method needs; the peak is compared with that.
"""

import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

from benchmarks.harness import interleave, machine, table
from lookaround import Lookaround
from lookaround.tasks.vision.models import build_model

BRANCHES, K, BATCH = 3, 5, 32


class Trainer:
    """A model, its optimizer and three fixed batches."""

    def __init__(self, wrap: Callable[[nn.Module, torch.optim.Optimizer], torch.optim.Optimizer]) -> None:
        torch.manual_seed(0)
        self.model = build_model("resnet18", classes=10).train()
        inner = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        self.optimizer = wrap(self.model, inner)
        self.batches = [(torch.randn(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))) for _ in range(BRANCHES)]

    def step(self, branch: int) -> None:
        """Forward, backward and step on one batch."""
        images, labels = self.batches[branch]
        loss = nn.functional.cross_entropy(self.model(images), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def plain() -> Callable[[], None]:
    """K passes of three plain steps."""
    trainer = Trainer(lambda model, inner: inner)

    def run() -> None:
        for _ in range(K):
            for branch in range(BRANCHES):
                trainer.step(branch)

    return run


def branched() -> Callable[[], None]:
    """A round of Lookaround: K passes over three branches and one average."""
    trainer = Trainer(lambda model, inner: Lookaround(inner, branches=BRANCHES, k=K, model=model))

    def run() -> None:
        assert isinstance(trainer.optimizer, Lookaround)
        for _ in range(K):
            for branch in trainer.optimizer.around():
                trainer.step(branch)

    return run


def peak_memory(kind: str) -> int:
    """The peak resident memory in bytes of a process of its own that trains two rounds on small batches."""
    imports = "from benchmarks import harness, lookaround_step as here"
    code = f"{imports}; here.BATCH = 8; run = here.{kind}(); run(); run(); print(harness.peak_memory())"
    return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def needed() -> int:
    """Bytes of d - 1 further sets of weights, momentum and buffers: what Lookaround needs beyond its inner optimizer."""
    model = build_model("resnet18", classes=10)
    weights = sum(p.nbytes for p in model.parameters())
    return (BRANCHES - 1) * (2 * weights + sum(b.nbytes for b in model.buffers()))


def main(repeats: int = 3) -> None:
    """Print the ratio of times, and peak memory against what the method needs."""
    print(f"\n== {BRANCHES} branches, ResNet-18, batch {BATCH} ({machine()})")
    candidates = {"3 plain steps, 5 times": plain(), "Lookaround, a round": branched()}
    times = interleave(candidates, repeats, warmup=1, clock=time.process_time)
    table("a round of k = 5 passes over 3 branches, its average included", [*times.items()], "3 plain steps, 5 times")
    alone, together, extra = peak_memory("plain"), peak_memory("branched"), needed()
    print("\npeak memory, batch 8")
    print(f"  the inner optimizer alone                  {alone / 1e6:9.1f} MB")
    print(f"  + d - 1 sets of weights and inner state    {(alone + extra) / 1e6:9.1f} MB     1.00 x")
    print(
        f"  Lookaround                                 {together / 1e6:9.1f} MB   {together / (alone + extra):6.2f} x"
    )


if __name__ == "__main__":
    main()
