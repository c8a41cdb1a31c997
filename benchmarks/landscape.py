"""A point of a plane through three ResNet-9s on 2,000 CIFAR-10 images, against the naive loop and against its forward passes alone.

The images are those of a class folder tree (``LOOKAROUND_IMAGES=DIR``, or the argument of ``python -m benchmarks.landscape``);
without one, random pixels of the same shape. A 21 x 21 plane is 441 such points.
"""

import os
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from benchmarks.harness import interleave, machine, table
from lookaround.averaging import update_norm_stats
from lookaround.landscape import Plane, Probe, Value
from lookaround.tasks.vision.data import load_data
from lookaround.tasks.vision.models import build_model

TURNS = 5
IMAGES, BATCH, WIDTH = 2000, 250, 16
POINTS = [(0.3 * i, 0.2 * i - 0.5) for i in range(5)]
TOGETHER = 4
Batches = list[tuple[Tensor, Tensor]]


def load_batches(folder: str | None) -> Batches:
    """2,000 normalized test images, or random ones, in batches."""
    if folder is None:
        images, labels = torch.randn(IMAGES, 3, 32, 32), torch.randint(10, (IMAGES,))
    else:
        data = load_data("folder", folder).subset(None, IMAGES, seed=0)
        images, labels = data.normalize(data.test_images), data.test_labels
    return list(zip(images.split(BATCH), labels.split(BATCH), strict=True))


def network() -> nn.Module:
    """A ResNet-9 with weights of its own."""
    return build_model("resnet9", classes=10, width=WIDTH).eval()


class Naive:
    """The usual loop: add up a state dict, load it, evaluate."""

    def __init__(self, anchors: list[nn.Module], batches: Batches, norm_stats: str) -> None:
        self.model, self.batches, self.norm_stats = network(), batches, norm_stats
        self.model.load_state_dict(anchors[0].state_dict())
        first, second, third = ({n: p.detach() for n, p in a.named_parameters()} for a in anchors)
        u = {n: second[n] - first[n] for n in first}
        r = {n: third[n] - first[n] for n in first}
        uu = sum((t * t).sum() for t in u.values())
        share = sum((u[n] * r[n]).sum() for n in u) / uu
        v = {n: r[n] - share * u[n] for n in u}
        vv = sum((t * t).sum() for t in v.values())
        self.origin = first
        self.u = {n: t / uu**0.5 for n, t in u.items()}
        self.v = {n: t / vv**0.5 for n, t in v.items()}

    @torch.no_grad()
    def point(self, x: float, y: float) -> Value:
        """Loss and accuracy at (x, y)."""
        state = {n: w + x * self.u[n] + y * self.v[n] for n, w in self.origin.items()}
        self.model.load_state_dict(state, strict=False)
        if self.norm_stats == "reestimate":
            update_norm_stats(self.model, [images for images, _ in self.batches])
        loss = hits = 0.0
        for images, labels in self.batches:
            logits = self.model(images)
            loss += F.cross_entropy(logits, labels, reduction="sum").item()
            hits += (logits.argmax(1) == labels).sum().item()
        return Value(loss / IMAGES, 100 * hits / IMAGES)


def ours(plane: Plane, probe: Probe) -> Callable[[float, float], Value]:
    """One point of `evaluate_grid`."""
    probe.span(plane.rows)

    def point(x: float, y: float) -> Value:
        probe.move(plane.weights(x, y))
        return probe.measure()

    return point


def forward_passes(probe: Probe) -> Callable[[], object]:
    """The same passes over the same batches with nothing around them: no move, no loss, no statistics kept."""

    @torch.inference_mode()
    def run() -> None:
        if probe.norm_stats == "reestimate":
            probe.model.train()
            for images, _ in probe.batches:
                probe.model(images)
            probe.model.eval()
        for images, _ in probe.batches:
            probe.model(images)

    return run


def several(probe: Probe) -> Callable[[], object]:
    """Several weight vectors in one batched forward pass over the first batch, with fixed statistics."""
    stacked = {n: p.detach().expand(TOGETHER, *p.shape).clone() for n, p in probe.model.named_parameters()}
    buffers = dict(probe.model.named_buffers())
    images = probe.batches[0][0]

    @torch.no_grad()
    def run() -> None:
        vmap(lambda weights: functional_call(probe.model, (weights, buffers), (images,)))(stacked)

    return run


def measure(anchors: list[nn.Module], batches: Batches, norm_stats: str) -> None:
    """Print one mode's table, and how far its numbers are from the naive loop's."""
    probe = Probe(anchors[0], batches, norm_stats=norm_stats)
    naive, point = Naive(anchors, batches, norm_stats), ours(Plane.through(*anchors), probe)
    pairs = [(naive.point(*xy), point(*xy)) for xy in POINTS]
    candidates = {
        "naive: load state dict, evaluate": lambda: naive.point(*POINTS[1]),
        "lookaround": lambda: point(*POINTS[1]),
        "floor: forward passes alone": forward_passes(probe),
    }
    times = interleave(candidates, TURNS)
    if norm_stats == "fixed":
        batched = interleave({"batched": several(probe)}, 2, warmup=1)["batched"]
        times[f"{TOGETHER} points in one batched pass, a point"] = batched / TOGETHER * len(batches)
    title = f"a point of a ResNet-9 (width {WIDTH}) plane, {IMAGES} images, norm statistics {norm_stats} ({machine()})"
    table(title, list(times.items()), "lookaround")
    slow, fast, floor = list(times.values())[:3]
    loss = max(abs(a.loss - b.loss) / a.loss for a, b in pairs)
    accuracy = max(abs(a.accuracy - b.accuracy) for a, b in pairs)
    print(
        f"  {slow / fast:.2f} x faster than the naive loop; {100 * (fast / floor - 1):+.1f} % over the forward passes"
    )
    print(f"  largest difference at {len(pairs)} points: loss {loss:.1e} relative, accuracy {accuracy:.2f} points")
    print(f"  a 21 x 21 plane: {441 * fast / 60:.1f} minutes")


def main(folder: str | None = None) -> None:
    """Print ratios for both choices of norm statistics."""
    torch.manual_seed(0)
    folder = folder or os.environ.get("LOOKAROUND_IMAGES")
    batches = load_batches(folder)
    print(f"images: {folder or 'random pixels; set LOOKAROUND_IMAGES to a class folder tree for real ones'}")
    anchors = [network() for _ in range(3)]
    for norm_stats in ("reestimate", "fixed"):
        measure(anchors, batches, norm_stats)


if __name__ == "__main__":
    main(*sys.argv[1:2])
