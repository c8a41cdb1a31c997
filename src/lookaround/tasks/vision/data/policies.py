"""Augmentations that draw image operations: RandAugment, AutoAugment, and equalization."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Generator, Tensor

from lookaround.tasks.vision.data.operations import IDENTITY, Operation, OperationTable, operation_table, signed_pair

RAND_AUGMENT_OPERATIONS = (
    "Identity",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
)
DRAWS = 2
MAGNITUDE = 9
MAGNITUDE_LEVELS = 31
POLICY_LEVELS = 10
LARGEST_CIFAR_POLICY_IMAGE = 64
EQUALIZE_PROBABILITY = 0.5


def rand_augment(images: Tensor, generator: Generator) -> Tensor:
    """RandAugment (Cubuk et al. 2020): two operations an image, each uniform over 14, at magnitude 9 of 30.

    The operations and their ranges are torchvision's; each that has a sign takes either with equal probability.
    """
    _check_channels(images)
    table, slots = _rand_augment_table(images.shape[-2], images.shape[-1], images.device)
    draws = torch.randint(len(slots), (DRAWS, len(images)), generator=generator)
    signs = torch.randint(2, (DRAWS, len(images)), generator=generator)
    for draw, sign in zip(draws, signs, strict=True):
        images = table.apply(images, slots[draw, sign])
    return images


@lru_cache(maxsize=16)
def _rand_augment_table(height: int, width: int, device: torch.device) -> tuple[OperationTable, Tensor]:
    """The distinct operations, and ``(operation, sign)`` to an index into them."""
    pairs = [signed_pair(name, MAGNITUDE, MAGNITUDE_LEVELS, height, width) for name in RAND_AUGMENT_OPERATIONS]
    distinct = tuple(dict.fromkeys(operation for pair in pairs for operation in pair))
    slots = torch.tensor([[distinct.index(operation) for operation in pair] for pair in pairs])
    return operation_table(distinct, height, width, device), slots


def auto_augment(images: Tensor, generator: Generator) -> Tensor:
    """AutoAugment (Cubuk et al. 2019): one of 25 learned pairs of operations an image, each with its probability.

    The policy is the one learned on CIFAR-10 for images up to 64 pixels and the one learned on ImageNet above.
    """
    _check_channels(images)
    height, width = images.shape[-2:]
    table, slots, probabilities = _auto_augment_table(height, width, images.device)
    policies = torch.randint(len(slots), (len(images),), generator=generator)
    applied = torch.rand(2, len(images), generator=generator)
    signs = torch.randint(2, (2, len(images)), generator=generator)
    identity = table.operations.index(IDENTITY)
    for step in range(2):
        chosen = slots[policies, step, signs[step]]
        chosen = chosen.where(applied[step] <= probabilities[policies, step], identity)
        images = table.apply(images, chosen)
    return images


@lru_cache(maxsize=16)
def _auto_augment_table(height: int, width: int, device: torch.device) -> tuple[OperationTable, Tensor, Tensor]:
    """The distinct operations, ``(policy, step, sign)`` to an index into them, and ``(policy, step)`` probabilities."""
    from torchvision.transforms import AutoAugment, AutoAugmentPolicy

    small = max(height, width) <= LARGEST_CIFAR_POLICY_IMAGE
    policies = AutoAugment(AutoAugmentPolicy.CIFAR10 if small else AutoAugmentPolicy.IMAGENET).policies
    pairs: list[list[tuple[Operation, Operation]]] = [
        [signed_pair(name, level or 0, POLICY_LEVELS, height, width) for name, _, level in policy]
        for policy in policies
    ]
    distinct = (IDENTITY, *dict.fromkeys(operation for policy in pairs for pair in policy for operation in pair))
    slots = torch.tensor([[[distinct.index(operation) for operation in pair] for pair in policy] for policy in pairs])
    probabilities = torch.tensor([[probability for _, probability, _ in policy] for policy in policies])
    return operation_table(distinct, height, width, device), slots, probabilities


def random_equalize(images: Tensor, generator: Generator) -> Tensor:
    """Equalizes each image's histogram, channel by channel, with probability 1/2.

    As in Pillow and torchvision, a channel with fewer than 255 pixels below its highest value stays as it is, so
    8x8 digits do not change.
    """
    chosen = torch.rand(len(images), generator=generator) < EQUALIZE_PROBABILITY
    rows = chosen.nonzero().flatten().to(images.device)
    output = images.clone()
    output[rows] = Operation("Equalize")(images[rows])
    return output


def _check_channels(images: Tensor) -> None:
    if images.shape[1] not in (1, 3):
        raise ValueError(f"rand-augment and auto-augment take images of 1 or 3 channels, got {images.shape[1]}")
