"""Samples a second of `lookaround train` against a bare loop of the same network, batch and precision; what augmentation costs."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.harness import interleave, machine
from lookaround import Lookaround
from lookaround.experiment import Budget, Display, Machine, Plan
from lookaround.experiment.running import Prepared
from lookaround.experiment.training import Training
from lookaround.methods import Spec
from lookaround.tasks.vision import VisionConfig, VisionTask
from lookaround.tasks.vision.batches import branch_augmentations
from lookaround.tasks.vision.data import ImageData, random_crop

IMAGES, BATCH, BRANCHES, MINIBATCHES, REPEATS = 512, 32, 3, 1, 5
CONFIG = VisionConfig(data="cifar10", model="resnet9", width=32, crop_padding=4, copies="independent")
GOAL, MOST = 0.95, 0.15


class Silent(Display):
    """Shows nothing, as the bare loop does."""

    def begin(self, runs: int) -> None: ...
    def run(self, label: str, done: int, total: int) -> None: ...
    def minibatch(self, loss: float | None) -> None: ...
    def epoch(self, record: dict[str, object]) -> None: ...
    def note(self, text: str) -> None: ...
    def close(self) -> None: ...


def images() -> ImageData:
    """Smooth random images, which augmentations treat like photographs."""
    torch.manual_seed(0)
    coarse = torch.rand(IMAGES, 3, 4, 4)
    fine = F.interpolate(coarse, size=32, mode="bilinear").mul(255).to(torch.uint8)
    labels = torch.arange(IMAGES) % 10
    return ImageData.from_images("random", fine, labels, fine[:64], labels[:64], [str(i) for i in range(10)])


def trained(task: VisionTask, method: str, folder: Path) -> Callable[[], None]:
    """Some minibatches of `lookaround train`."""
    spec = Spec.parse(f"{method}:batch={BATCH}")
    plan = Plan("vision", CONFIG, (spec,), (0,), Budget(epochs=1), Machine(device="cpu"))
    budget = 10_000 * BATCH * BRANCHES
    training = Training(Prepared(plan, task, budget, 600.0), spec, 0, folder, Silent())

    def run() -> None:
        end = training.step + MINIBATCHES
        while training.step < end:
            training._train(training._next(end))

    return run


def bare(task: VisionTask, method: str) -> Callable[[], None]:
    """The same minibatches in a loop as one would write it for these settings alone."""
    torch.manual_seed(0)
    model = task.network()
    inner = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    around = Lookaround(inner, branches=BRANCHES, k=5, model=model) if method == "lookaround" else None
    augment, generator = branch_augmentations(CONFIG, BRANCHES), torch.Generator().manual_seed(0)
    data = task.data

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, branch: int) -> None:
        chosen = torch.randint(IMAGES, (BATCH,), generator=generator)
        x = random_crop(data.train_images[chosen], 4, generator)
        x = data.normalize(augment[branch](x, generator))
        loss = F.cross_entropy(model(x), data.train_labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    def run() -> None:
        for _ in range(MINIBATCHES):
            for branch in range(BRANCHES) if around is None else around.around():
                step(model, around or inner, branch)

    return run


def augmentation_share(task: VisionTask, seconds: float) -> float:
    """The part of a step that drawing and augmenting its copy takes."""
    batches = task.batches(0, BATCH, BRANCHES)
    times = []
    for position in range(12):
        begin = time.perf_counter()
        for branch in range(BRANCHES):
            batches.copy(position, branch)
        times.append(time.perf_counter() - begin)
    return sorted(times[2:])[5] / (seconds / MINIBATCHES)


def main() -> None:
    """Print samples a second, their ratios, and the share of augmentation."""
    task = VisionTask(CONFIG, images())
    print(f"\n{CONFIG.model} of width {CONFIG.width}, minibatches of {BATCH}, {BRANCHES} copies; {machine()}")
    samples = BATCH * BRANCHES * MINIBATCHES
    for method in ("sgd", "lookaround"):
        with tempfile.TemporaryDirectory() as folder:
            runs = {"bare": bare(task, method), "train": trained(task, method, Path(folder))}
            found = interleave(runs, REPEATS)
        ratio = found["bare"] / found["train"]
        speeds = ", ".join(f"{name} {samples / seconds:7.1f}" for name, seconds in found.items())
        print(f"  {method:<12} samples/s: {speeds}; ratio {ratio:.3f} (goal {GOAL})")
        share = augmentation_share(task, found["train"])
        print(f"  {method:<12} augmentation: {share:.1%} of a step (at most {MOST:.0%})")


if __name__ == "__main__":
    main()
