"""Minibatches of images and their augmented copies."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from lookaround.tasks.base import Batch, Batches
from lookaround.tasks.streams import stream_seed
from lookaround.tasks.vision.config import VisionConfig
from lookaround.tasks.vision.data import Augmentation, ImageData, augmentation, default_augmentations, random_crop
from lookaround.tasks.vision.data.streamed import ReadAhead, StreamedImages


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
        self._orders = Orders(images, self.units, seed, data.train_labels.device)
        self._ahead: dict[int | None, ReadAhead] = {}
        self.read_ahead = isinstance(data.train_images, StreamedImages)

    def copy(self, position: int, branch: int) -> Batch:
        stream = branch if self.config.copies == "independent" else None
        chosen = self._orders.chosen(position, stream)
        epoch, index = divmod(position, self.per_epoch)
        generator = torch.Generator().manual_seed(stream_seed(self.seed, "copy", epoch, index, branch))
        images = self._read(position, stream, chosen)
        if self.config.crop_padding:
            images = random_crop(images, self.config.crop_padding, generator)
        images = prepare(self._augment[branch](images, generator), self.data, self.config)
        return Batch(images, self.data.train_labels[chosen], self.units)

    def _read(self, position: int, stream: int | None, chosen: Tensor) -> Tensor:
        images = self.data.train_images
        if not isinstance(images, StreamedImages):
            return images[chosen]
        if stream not in self._ahead:
            streams = 1 if stream is None else self.branches
            workers = -(-images.workers // streams)
            orders = Orders(len(images), self.units, self.seed, torch.device("cpu"))
            self._ahead[stream] = ReadAhead(images, partial(orders.chosen, stream=stream), workers)
        return self._ahead[stream][position]


class Orders:
    """Which images make a minibatch: a part of a shuffled order, another one in each epoch.

    Args:
        images: to choose from.
        size: of a minibatch.
        seed: of the run.
        device: of the indices.
    """

    def __init__(self, images: int, size: int, seed: int, device: torch.device) -> None:
        self._images, self._size, self._seed, self._device = images, size, seed, device
        self._known: dict[tuple[int, int | None], Tensor] = {}

    def chosen(self, position: int, stream: int | None) -> Tensor:
        """The indices of minibatch number ``position`` of the run in a branch's stream, or in the one that all share (None)."""
        epoch, index = divmod(position, self._images // self._size)
        return self._order(epoch, stream)[index * self._size : (index + 1) * self._size]

    def _order(self, epoch: int, stream: int | None) -> Tensor:
        """Kept for as long as the epoch before or after is read, as readers ahead are there first."""
        key = (epoch, stream)
        if key not in self._known:
            self._known = {known: order for known, order in self._known.items() if abs(known[0] - epoch) <= 1}
            own = () if stream is None else (stream,)
            generator = torch.Generator().manual_seed(stream_seed(self._seed, "order", epoch, *own))
            self._known[key] = torch.randperm(self._images, generator=generator).to(self._device)
        return self._known[key]
