"""Minibatches and their augmented copies, each a function of seed, epoch, minibatch and branch alone.

Nothing here has a history. Whatever a method does with the copies, and wherever a run was killed and resumed, the same
numbers come out: that is what makes the comparison's budget equal and its resumption exact.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lookaround.experiment.config import TrainConfig
from lookaround.tasks.vision.data import Augmentation, ImageData, augmentation, default_augmentations, random_crop


def stream_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on all of ``parts`` and on their order.

    Example:
        >>> stream_seed(0, "order", 1) == stream_seed(0, "order", 2)
        False
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def branch_augmentations(config: TrainConfig) -> list[Augmentation]:
    """The augmentation of each branch's copy.

    Raises:
        ValueError: for an unknown name, or more branches than the data set has default augmentations for.

    Example:
        >>> [branch.name for branch in branch_augmentations(TrainConfig(augmentations=("shift",), branches=2))]
        ['shift', 'shift']
    """
    names = config.augmentations or default_augmentations(config.data, config.branches)
    return [augmentation(names[branch % len(names)]) for branch in range(config.branches)]


@dataclass(frozen=True)
class Minibatch:
    """One minibatch of the training set, from which any branch's augmented copy can be drawn.

    Attributes:
        batches: where it comes from.
        epoch: counted from 0.
        index: within the epoch, from 0.
        indices: int64, of its images in the training set, on the training device.
    """

    batches: Batches
    epoch: int
    index: int
    indices: Tensor

    @property
    def branches(self) -> int:
        """The number of augmented copies, all of which every method consumes."""
        return self.batches.config.branches

    @property
    def position(self) -> int:
        """Minibatches of the whole run before this one."""
        return self.epoch * self.batches.per_epoch + self.index

    @property
    def labels(self) -> Tensor:
        """int64 ``(N,)``."""
        return self.batches.data.train_labels[self.indices]

    def copy(self, branch: int) -> Tensor:
        """Copy number ``branch``: cropped and augmented anew, normalized, float32 ``(N, C, H, W)``."""
        return self.batches.augmented(self, branch)


class Batches:
    """Shuffles the training images anew each epoch and cuts them into minibatches.

    Images left over after the last full minibatch of an epoch are skipped in that epoch, as a batch of a few images
    would upset batch norm. A training set smaller than a minibatch is one minibatch.

    Args:
        data: images on the training device.
        config: gives ``batch_size``, ``augmentations``, ``crop_padding``, ``channels_last``.
        seed: of the run.
    """

    def __init__(self, data: ImageData, config: TrainConfig, seed: int) -> None:
        self.data = data
        self.config = config
        self.seed = seed
        self.size = min(config.batch_size, len(data.train_labels))
        self._augment = branch_augmentations(config)

    @property
    def per_epoch(self) -> int:
        """Minibatches in an epoch."""
        return len(self.data.train_labels) // self.size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Minibatch]:
        """The minibatches of one epoch, from number ``start`` on."""
        generator = torch.Generator().manual_seed(stream_seed(self.seed, "order", epoch))
        order = torch.randperm(len(self.data.train_labels), generator=generator).to(self.data.train_labels.device)
        for index in range(start, self.per_epoch):
            yield Minibatch(self, epoch, index, order[index * self.size : (index + 1) * self.size])

    def augmented(self, minibatch: Minibatch, branch: int) -> Tensor:
        """See `Minibatch.copy`."""
        images = self.data.train_images[minibatch.indices]
        stream = stream_seed(self.seed, "copy", minibatch.epoch, minibatch.index, branch)
        generator = torch.Generator().manual_seed(stream)
        if self.config.crop_padding:
            images = random_crop(images, self.config.crop_padding, generator)
        return self.prepare(self._augment[branch](images, generator))

    def prepare(self, images: Tensor) -> Tensor:
        """Normalized float32 images in the memory format that the network is trained with."""
        layout = torch.channels_last if self.config.channels_last else torch.contiguous_format
        return self.data.normalize(images).contiguous(memory_format=layout)
