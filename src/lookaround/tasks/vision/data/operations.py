"""RandAugment's image operations on batches, another one for every image.

What the operations do is torchvision's. Most of them depend on an image's size or a pixel's value only, so torchvision
is asked once and the answer is kept as a table: moves as the source of every pixel, curves as the new value of each of
the 256. Then one gather serves images with different operations. The few that look at the whole image are called once
for all images that drew them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from lookaround.tasks.vision.data.geometry import take_pixels


@dataclass(frozen=True)
class Operation:
    """One image operation; ``magnitude`` is signed and in the operation's own unit (degrees, pixels, bits …)."""

    name: str
    magnitude: float = 0.0

    def __call__(self, images: Tensor) -> Tensor:
        """torchvision's operation on images ``(..., C, H, W)``, all with this magnitude."""
        return _calls()[self.name](images, self.magnitude)


IDENTITY = Operation("Identity")
MOVES = frozenset(("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"))
CURVES = frozenset(("Brightness", "Posterize", "Solarize", "Invert"))
SIGNED = MOVES | {"Brightness", "Color", "Contrast", "Sharpness"}


@lru_cache(maxsize=1)
def _calls() -> dict[str, Callable[[Tensor, float], Tensor]]:
    from torchvision.transforms.v2 import functional

    f: Any = functional

    def affine(images: Tensor, shift: Sequence[int] = (0, 0), shear: Sequence[float] = (0.0, 0.0), **more: Any) -> Any:
        return f.affine(images, angle=0.0, translate=list(shift), scale=1.0, shear=list(shear), **more)

    def slant(magnitude: float) -> float:
        return math.degrees(math.atan(magnitude))

    return {
        "Identity": lambda images, m: images,
        "ShearX": lambda images, m: affine(images, shear=(slant(m), 0.0), center=[0, 0]),
        "ShearY": lambda images, m: affine(images, shear=(0.0, slant(m)), center=[0, 0]),
        "TranslateX": lambda images, m: affine(images, shift=(int(m), 0)),
        "TranslateY": lambda images, m: affine(images, shift=(0, int(m))),
        "Rotate": lambda images, m: f.rotate(images, m),
        "Brightness": lambda images, m: f.adjust_brightness(images, 1 + m),
        "Color": lambda images, m: f.adjust_saturation(images, 1 + m),
        "Contrast": lambda images, m: f.adjust_contrast(images, 1 + m),
        "Sharpness": lambda images, m: f.adjust_sharpness(images, 1 + m),
        "Posterize": lambda images, m: f.posterize(images, int(m)),
        "Solarize": lambda images, m: f.solarize(images, m),
        "AutoContrast": lambda images, m: f.autocontrast(images),
        "Equalize": lambda images, m: f.equalize(images),
        "Invert": lambda images, m: f.invert(images),
    }


def magnitude(name: str, level: int, levels: int, height: int, width: int) -> float:
    """The unsigned magnitude of an operation at ``level`` of 0 … ``levels`` - 1, for images of this size.

    The ranges are torchvision's: shear 0.3, translation 150/331 of the side, rotation 30 degrees, colour factors 1 ±
    0.9, 8 to 4 bits, solarization from threshold 255 to 0. In float32, as there: a threshold between two pixel values
    must fall on the same side.
    """
    if name == "Posterize":
        return 8 - round(4 * level / (levels - 1))
    if name == "Solarize":
        return 255 * torch.linspace(1, 0, levels)[level].item()
    tops = {"ShearX": 0.3, "ShearY": 0.3, "Rotate": 30.0, "Brightness": 0.9, "Color": 0.9, "Contrast": 0.9}
    tops |= {"Sharpness": 0.9, "TranslateX": 150 / 331 * width, "TranslateY": 150 / 331 * height}
    return torch.linspace(0, tops[name], levels)[level].item() if name in tops else 0.0


def signed_pair(name: str, level: int, levels: int, height: int, width: int) -> tuple[Operation, Operation]:
    """The operation at this level with either sign; twice the same where there is no sign."""
    size = magnitude(name, level, levels, height, width)
    return Operation(name, size), Operation(name, -size if name in SIGNED else size)


@dataclass(frozen=True)
class OperationTable:
    """Distinct operations for images of one size on one device, ready to be applied by index.

    Attributes:
        operations: what an index stands for.
        sources: int64 ``(operations, H·W)``, of the moves: 1 + the pixel that comes here, or 0 for none.
        curves: uint8 ``(operations, 256)``, of the curves: the new value of each value.
        groups: for each operation what it is done together with: all moves, all curves, or itself alone.
    """

    operations: tuple[Operation, ...]
    sources: Tensor
    curves: Tensor
    groups: tuple[str | Operation, ...]

    def apply(self, images: Tensor, which: Tensor) -> Tensor:
        """Applies ``operations[which[n]]`` to image n.

        Args:
            images: uint8 ``(N, C, H, W)`` with one or three channels.
            which: int64 ``(N,)`` on the CPU, where the grouping happens, so that no device has to be waited for.
        """
        members: dict[str | Operation, list[int]] = {}
        for row, index in enumerate(which.tolist()):
            members.setdefault(self.groups[index], []).append(row)
        parts = []
        for group, rows in members.items():
            chosen = torch.tensor(rows)
            part = images.index_select(0, chosen.to(images.device))
            parts.append(self._change(part, group, which[chosen].to(images.device)))
        order = torch.tensor([row for rows in members.values() for row in rows])
        return torch.cat(parts).index_select(0, order.argsort().to(images.device))

    def _change(self, images: Tensor, group: str | Operation, which: Tensor) -> Tensor:
        if isinstance(group, Operation):
            return group(images)
        return self._move(images, which) if group == "move" else self._curve(images, which)

    def _move(self, images: Tensor, which: Tensor) -> Tensor:
        pixels = torch.nn.functional.pad(images.flatten(2), (1, 0))
        return take_pixels(pixels, self.sources.index_select(0, which)).view_as(images)

    def _curve(self, images: Tensor, which: Tensor) -> Tensor:
        return self.curves.index_select(0, which).gather(1, images.flatten(1).long()).view_as(images)


@lru_cache(maxsize=16)
def operation_table(operations: tuple[Operation, ...], height: int, width: int, device: torch.device) -> OperationTable:
    """Asks torchvision for the table of every move and curve; made on the CPU, so equal on every device."""
    numbers = torch.arange(1, height * width + 1, dtype=torch.float32).view(1, height, width)
    values = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    sources = torch.zeros(len(operations), height * width, dtype=torch.int64)
    curves = torch.zeros(len(operations), 256, dtype=torch.uint8)
    groups: list[str | Operation] = []
    for index, operation in enumerate(operations):
        if operation.name in MOVES:
            sources[index] = operation(numbers).flatten().long()
            groups.append("move")
        elif operation.name in CURVES:
            curves[index] = operation(values).flatten()
            groups.append("curve")
        else:
            groups.append(operation)
    return OperationTable(operations, sources.to(device), curves.to(device), tuple(groups))
