"""Labelled images, in memory or on the disk, and the deterministic ways of taking a part of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lookaround.tasks.vision.data.errors import DataError
from lookaround.tasks.vision.data.images import Images, channel_sums, moments, normalized, select


@dataclass(frozen=True)
class ImageData:
    """Training and test images of one data set, in memory or read when they are asked for.

    Images are uint8 of shape ``(N, C, H, W)`` and stay so until `normalize`, which makes a batch a quarter of its
    float32 size on the way to the device and lets augmentations work on bytes. Build one with `from_images`, which
    measures ``mean`` and ``std``.

    Attributes:
        name: what the data set is called in records and plots.
        train_images: uint8 ``(N, C, H, W)``.
        train_labels: int64 ``(N,)``, indices into ``classes``.
        test_images: uint8 ``(M, C, H, W)``, of the same C, H, W.
        test_labels: int64 ``(M,)``.
        classes: class names in label order.
        mean: per channel, of ``train_images`` scaled to [0, 1].
        std: per channel, the population standard deviation on the same scale; 1 for a constant channel.

    Example:
        >>> import torch
        >>> from lookaround.tasks.vision.data import ImageData
        >>> images = torch.randint(256, (20, 3, 8, 8), dtype=torch.uint8)
        >>> labels = torch.arange(20) % 2
        >>> data = ImageData.from_images("toy", images, labels, images[:4], labels[:4], ("even", "odd"))
        >>> data.subset(6, None, seed=0).train_labels.bincount().tolist()
        [3, 3]
        >>> data.normalize(data.train_images).mean().abs() < 1e-5
        tensor(True)
    """

    name: str
    train_images: Images
    train_labels: Tensor
    test_images: Images
    test_labels: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_images(
        cls,
        name: str,
        train_images: Images,
        train_labels: Tensor,
        test_images: Images,
        test_labels: Tensor,
        classes: Sequence[str],
    ) -> ImageData:
        """Checks shapes, dtypes and labels, and measures the training images' mean and standard deviation.

        Raises:
            DataError: for images that are not uint8 NCHW, parts that differ in C, H, W or length, or labels outside
                ``range(len(classes))``.
        """
        _check_part(name, "training", train_images, train_labels, len(classes))
        _check_part(name, "test", test_images, test_labels, len(classes))
        if train_images.shape[1:] != test_images.shape[1:]:
            shapes = f"{tuple(train_images.shape[1:])} and {tuple(test_images.shape[1:])}"
            raise DataError(f"{name}: training and test images must have one shape, they have {shapes}")
        mean, std = _statistics(train_images)
        return cls(name, train_images, train_labels, test_images, test_labels, tuple(classes), mean, std)

    def subset(self, train: int | None, test: int | None, seed: int) -> ImageData:
        """A class-balanced part: every class gives equally many images (±1) as far as it has them.

        The same seed gives the same images, a larger count contains the smaller one's, and the images keep the data
        set's order. ``mean`` and ``std`` are measured anew on the training images that remain.

        Args:
            train: number of training images, or None for all.
            test: number of test images, or None for all.
            seed: of the random choice within each class.

        Raises:
            ValueError: for a count below 1 or above what there is.
        """
        parts: list[Any] = []
        for what, count, images, labels in (
            ("training", train, self.train_images, self.train_labels),
            ("test", test, self.test_images, self.test_labels),
        ):
            if count is None:
                parts += [images, labels]
                continue
            chosen = choose_balanced(labels, f"{what} images of {self.name}", count, seed)
            parts += [select(images, chosen), labels[chosen]]
        return ImageData.from_images(self.name, parts[0], parts[1], parts[2], parts[3], self.classes)

    def hold_out(self, fraction_or_count: float, seed: int) -> tuple[ImageData, Images, Tensor]:
        """Splits validation images off the training set, stratified: each class keeps its share (±1).

        ``mean`` and ``std`` are measured anew, so the validation images leave no trace in the normalization.

        Args:
            fraction_or_count: a float in (0, 1) is a fraction of the training images (rounded to a count), an int a
                count from 1 to one less than there are.
            seed: of the random choice within each class.

        Returns:
            The data without the validation images, the validation images (uint8 NCHW) and their labels.

        Raises:
            ValueError: for a fraction outside (0, 1), or a count outside 1 to N - 1.
        """
        total = len(self.train_labels)
        count = fraction_or_count
        if isinstance(fraction_or_count, float):
            if not 0 < fraction_or_count < 1:
                raise ValueError(
                    f"the part to hold out must lie between 0 and 1, or be a count, got {fraction_or_count}"
                )
            count = round(fraction_or_count * total)
        _check_count(f"holding out a part of {self.name}'s {total} training images", int(count), total - 1)
        order = class_order(self.train_labels, seed, proportional=True)
        held, kept = order[: int(count)].sort().values, order[int(count) :].sort().values
        rest = replace(self, train_images=select(self.train_images, kept), train_labels=self.train_labels[kept])
        mean, std = _statistics(rest.train_images)
        return replace(rest, mean=mean, std=std), select(self.train_images, held), self.train_labels[held]

    def with_noise(self, share: float, seed: int) -> ImageData:
        """With the labels of a share of the training images drawn anew from all classes, so that some stay right by chance.

        Args:
            share: from 0 (none) to 1, rounded to a count of images.
            seed: of which images, and of their labels. A larger share contains the smaller one's images.
        """
        labels, generator = self.train_labels, torch.Generator().manual_seed(seed)
        drawn = torch.randint(len(self.classes), labels.shape, generator=generator).to(labels.device)
        chosen = torch.randperm(len(labels), generator=generator)[: round(share * len(labels))].to(labels.device)
        return replace(self, train_labels=labels.index_copy(0, chosen, drawn[chosen]))

    def to(self, device: torch.device | str) -> ImageData:
        """The same data with its tensors on a device, and its images arriving there."""
        parts = ("train_images", "train_labels", "test_images", "test_labels")
        return replace(self, **{part: getattr(self, part).to(torch.device(device)) for part in parts})

    def normalize(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """``(images / 255 - mean) / std`` per channel, on the images' own device.

        Args:
            images: uint8 ``(N, C, H, W)``.
            dtype: of the result; the arithmetic is float32 (float64 for float64).
        """
        return normalized(images, self.mean, self.std, dtype)


def _statistics(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population standard deviation per channel on the scale [0, 1]."""
    count, _, height, width = images.shape
    return moments(channel_sums(images), count * height * width)


def choose_balanced(labels: Tensor, what: str, count: int, seed: int) -> Tensor:
    """The indices of ``count`` images, equally many of each class (±1) as far as it has them, in rising order.

    Raises:
        ValueError: for a count below 1 or above what there is, naming ``what``.
    """
    _check_count(f"a subset of the {what}", count, len(labels))
    return class_order(labels, seed, proportional=False)[:count].sort().values


def class_order(labels: Tensor, seed: int, *, proportional: bool) -> Tensor:
    """A random order of the indices of which every prefix is balanced over the classes.

    Each image gets a random rank r within its class of n images. Sorting by r gives prefixes with equally many images
    of every class; sorting by (r + 1/2) / n gives prefixes with every class's own share (Webster's apportionment).
    The draw is made on the CPU, so it does not depend on the labels' device.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=generator)
    on_cpu = labels.cpu()[shuffled]
    by_class = on_cpu.argsort(stable=True)
    sizes = on_cpu.bincount()
    starts = sizes.cumsum(0) - sizes
    rank = torch.empty(len(labels), dtype=torch.float64)
    rank[by_class] = (torch.arange(len(labels)) - starts.repeat_interleave(sizes)).double()
    key = (rank + 0.5) / sizes[on_cpu] if proportional else rank
    return shuffled[key.argsort(stable=True)].to(labels.device)


def _check_part(name: str, part: str, images: Images, labels: Tensor, classes: int) -> None:
    dtype = getattr(images, "dtype", torch.uint8)  # what is read from files has no other
    if len(images.shape) != 4 or dtype != torch.uint8 or not images.shape.numel():
        got = f"{dtype} of shape {tuple(images.shape)}"
        raise DataError(f"{name}: {part} images must be uint8 of shape (N, C, H, W) with none of them 0, got {got}")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        got = f"{labels.dtype} of shape {tuple(labels.shape)} for {len(images)} images"
        raise DataError(f"{name}: {part} labels must be int64, one an image, got {got}")
    low, high = labels.min().item(), labels.max().item()
    if low < 0 or high >= classes:
        raise DataError(f"{name}: {part} labels must be 0 to {classes - 1}, they are {low} to {high}")


def _check_count(what: str, count: int, most: int) -> None:
    if not 1 <= count <= most:
        raise ValueError(f"{what} takes 1 to {most} images, got {count}")
