"""Augmentations by name: what makes the branches of Lookaround differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from lookaround.tasks.vision.data import geometry, policies


@dataclass(frozen=True)
class Augmentation:
    """A random change of images, drawn anew for every image of a batch.

    The draws come from the generator alone and are made on the CPU, so the generator's state decides the output
    (to the bit on one device; to the rounding of interpolated pixels between devices) and saving it resumes the
    stream. The input is never changed.

    Attributes:
        name: as in `AUGMENTATIONS`.
        change: the function of images and generator that does it.
    """

    name: str
    change: Callable[[Tensor, Generator], Tensor]

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """Augments a batch on its own device.

        Args:
            images: uint8 ``(N, C, H, W)``.
            generator: on the CPU.

        Returns:
            uint8 of the same shape, on the same device.

        Raises:
            ValueError: for images of another dtype or number of dimensions, or a generator that is not on the CPU.
        """
        if images.dtype != torch.uint8 or images.ndim != 4:
            got = f"{images.dtype} of shape {tuple(images.shape)}"
            raise ValueError(f"{self.name} takes uint8 images of shape (N, C, H, W), got {got}")
        if generator.device.type != "cpu":
            raise ValueError(f"{self.name} takes a CPU generator, whatever the images' device; got {generator.device}")
        return self.change(images, generator) if len(images) else images


def _none(images: Tensor, generator: Generator) -> Tensor:
    return images


_CHANGES: dict[str, Callable[[Tensor, Generator], Tensor]] = {
    "none": _none,
    "horizontal-flip": geometry.horizontal_flip,
    "vertical-flip": geometry.vertical_flip,
    "rand-augment": policies.rand_augment,
    "auto-augment": policies.auto_augment,
    "rotation": geometry.rotation,
    "shift": geometry.shift,
    "small-rotation": geometry.small_rotation,
    "perspective": geometry.perspective,
    "equalize": policies.random_equalize,
    "resized-crop": geometry.resized_crop,
}
AUGMENTATIONS = tuple(_CHANGES)
_OF_PHOTOGRAPHS = ("horizontal-flip", "vertical-flip", "rand-augment", "auto-augment", "perspective", "equalize")
_OF_DIGITS = ("shift", "small-rotation", "perspective", "rand-augment", "none")


def augmentation(name: str) -> Augmentation:
    """The augmentation of this name.

    ==================  ================================================================================
    none                the images as they are
    horizontal-flip     left to right, with probability 1/2
    vertical-flip       upside down, with probability 1/2
    rand-augment        two of torchvision's 14 operations at magnitude 9 of 30
    auto-augment        the policy learned on CIFAR-10 (up to 64 pixels) or on ImageNet (above)
    rotation            up to ±15 degrees, nearest pixel
    shift               up to an eighth of the side, filled with zeros
    small-rotation      up to ±10 degrees, interpolated
    perspective         corners up to a quarter of the side inwards, with probability 1/2, interpolated
    equalize            histogram equalization, with probability 1/2
    resized-crop        a part of 8 to 100 % of the area, 3:4 to 4:3, scaled to the whole, interpolated
    ==================  ================================================================================

    Names with ``+`` between them come one after the other, such as ``horizontal-flip+rotation``.

    Raises:
        ValueError: for an unknown name.

    Example:
        >>> import torch
        >>> from lookaround.tasks.vision.data import augmentation
        >>> images = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8)
        >>> augmentation("rand-augment")(images, torch.Generator().manual_seed(0)).shape
        torch.Size([8, 3, 32, 32])
    """
    parts = name.split("+")
    unknown = [part for part in parts if part not in _CHANGES]
    if unknown:
        raise ValueError(
            f"unknown augmentation {unknown[0]!r}; choose among {', '.join(AUGMENTATIONS)}, or join some with +"
        )
    return Augmentation(name, _in_turn([_CHANGES[part] for part in parts]))


def _in_turn(changes: list[Callable[[Tensor, Generator], Tensor]]) -> Callable[[Tensor, Generator], Tensor]:
    if len(changes) == 1:
        return changes[0]

    def changed(images: Tensor, generator: Generator) -> Tensor:
        for change in changes:
            images = change(images, generator)
        return images

    return changed


def default_augmentations(data_name: str, branches: int) -> list[str]:
    """One augmentation a branch that suits the data set.

    For photographs the six of the Lookaround paper (Zhang et al. 2023, Appendix C.6) in its order of use: with three
    branches a horizontal flip, a vertical flip and RandAugment. A mirrored digit is another sign, so ``digits`` has
    shift, small rotation, perspective, RandAugment (which does not flip) and none.

    Args:
        data_name: ``"digits"``, or anything else for photographs.
        branches: number of branches d, at least 1.

    Raises:
        ValueError: for a number of branches that the list cannot serve.

    Example:
        >>> from lookaround.tasks.vision.data import default_augmentations
        >>> default_augmentations("cifar10", 3)
        ['horizontal-flip', 'vertical-flip', 'rand-augment']
    """
    suited = _OF_DIGITS if data_name == "digits" else _OF_PHOTOGRAPHS
    if not 1 <= branches <= len(suited):
        raise ValueError(
            f"{data_name} has default augmentations for 1 to {len(suited)} branches, got {branches}; "
            f"name one a branch from {', '.join(AUGMENTATIONS)}"
        )
    return list(suited[:branches])
