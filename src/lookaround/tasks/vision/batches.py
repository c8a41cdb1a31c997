"""Minibatches of images and their augmented copies."""

from __future__ import annotations

import torch
from torch import Tensor

from lookaround.tasks.base import Batch, Batches
from lookaround.tasks.streams import stream_seed
from lookaround.tasks.vision.config import VisionConfig
from lookaround.tasks.vision.data import Augmentation, ImageData, augmentation, default_augmentations, random_crop


def prepare(images: Tensor, data: ImageData, config: VisionConfig) -> Tensor:
    """Normalized float32 images in the memory format that the network is trained with, from uint8 ones."""
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    return data.normalize(images).contiguous(memory_format=layout)


def branch_augmentations(config: VisionConfig, branches: int) -> list[Augmentation]:
    """The augmentation of each branch's copy; a method with more branches than the task goes round them again.

    Raises:
        ValueError: for an unknown name, or more branches than the data set has default augmentations for.

    Example:
        >>> config = VisionConfig(augmentations=("shift", "none"), branches=2)
        >>> [branch.name for branch in branch_augmentations(config, 3)]
        ['shift', 'none', 'shift']
    """
    names = config.augmentations or default_augmentations(config.data, config.branches)
    return [augmentation(names[branch % len(names)]) for branch in range(branches)]


class ImageBatches(Batches):
    """Shuffles the training images anew each epoch and cuts them into minibatches.

    With independent copies each branch has an order of its own, with shared ones all have the same. Images left over after the last
    full minibatch of an epoch are skipped in that epoch, as a batch of a few images would upset batch norm. A training set
    smaller than a minibatch is one minibatch.

    Args:
        data: images on the training device.
        config: how they are augmented, and whose the copies are.
        seed: of the run.
        batch: images in a minibatch.
        branches: copies of it.
    """

    def __init__(self, data: ImageData, config: VisionConfig, seed: int, batch: int, branches: int) -> None:
        images = len(data.train_labels)
        self.data, self.config, self.seed, self.branches = data, config, seed, branches
        self.units = min(batch, images)
        self.per_epoch = images // self.units
        self._augment = branch_augmentations(config, branches)
        self._orders: dict[tuple[int, int], Tensor] = {}

    def copy(self, position: int, branch: int) -> Batch:
        epoch, index = divmod(position, self.per_epoch)
        chosen = self._order(epoch, branch)[index * self.units : (index + 1) * self.units]
        images = self.data.train_images[chosen]
        generator = torch.Generator().manual_seed(stream_seed(self.seed, "copy", epoch, index, branch))
        if self.config.crop_padding:
            images = random_crop(images, self.config.crop_padding, generator)
        images = prepare(self._augment[branch](images, generator), self.data, self.config)
        return Batch(images, self.data.train_labels[chosen], self.units)

    def _order(self, epoch: int, branch: int) -> Tensor:
        key = (epoch, branch if self.config.copies == "independent" else 0)
        if key not in self._orders:
            self._orders = {known: order for known, order in self._orders.items() if known[0] == epoch}
            self._orders[key] = self._shuffled(*key)
        return self._orders[key]

    def _shuffled(self, epoch: int, branch: int) -> Tensor:
        own = (branch,) if self.config.copies == "independent" else ()
        generator = torch.Generator().manual_seed(stream_seed(self.seed, "order", epoch, *own))
        labels = self.data.train_labels
        return torch.randperm(len(labels), generator=generator).to(labels.device)
