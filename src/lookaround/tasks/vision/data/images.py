"""The images of one split, in memory or on the disk, and the exact numbers that describe them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Protocol, Self

import torch
from torch import Tensor

DIGEST_BYTES = 16


class Images(Protocol):
    """uint8 images of one shape ``(N, C, H, W)``: a tensor, or something that reads them when they are asked for."""

    @property
    def shape(self) -> torch.Size:
        """``(N, C, H, W)``."""

    @property
    def device(self) -> torch.device:
        """Where images arrive."""

    def __len__(self) -> int:
        """N."""

    def __getitem__(self, indices: Tensor, /) -> Tensor:
        """The images with these int64 indices, uint8 ``(n, C, H, W)``."""

    def split(self, size: int, /) -> Iterable[Tensor]:
        """All images in order, in batches of ``size``, the last one of what is left."""

    def to(self, device: torch.device, /) -> Self:
        """The same images, arriving on another device."""


class OnDisk(Images, Protocol):
    """Images that stay where they are until they are asked for."""

    def select(self, indices: Tensor) -> Self:
        """Those with these indices, as images of their own."""

    def sums(self) -> Tensor:
        """See `channel_sums`."""

    def digests(self) -> Tensor:
        """See `digests`."""


def select(images: Images, indices: Tensor) -> Images:
    """Those of the images with these indices, in memory or on the disk as they are."""
    return images[indices] if isinstance(images, Tensor) else _on_disk(images).select(indices.cpu())


def _on_disk(images: Images) -> OnDisk:
    assert hasattr(images, "select")
    return images  # type: ignore[return-value]


def channel_sums(images: Images) -> Tensor:
    """Of all pixels of each channel the sum and the sum of squares, exactly: int64 ``(C, 2)`` on the CPU.

    Example:
        >>> import torch
        >>> from lookaround.tasks.vision.data.images import channel_sums
        >>> channel_sums(torch.full((2, 1, 2, 2), 3, dtype=torch.uint8))
        tensor([[24, 72]])
    """
    return _sums_in_memory(images) if isinstance(images, Tensor) else _on_disk(images).sums()


def _sums_in_memory(images: Tensor) -> Tensor:
    values = torch.arange(256, device=images.device)
    powers = torch.stack([values, values * values])
    counts = [channel.reshape(-1).bincount(minlength=256) for channel in images.unbind(1)]
    return torch.stack([(powers * count).sum(1) for count in counts]).cpu()


def moments(sums: Tensor, pixels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population standard deviation of each channel on the scale [0, 1], the same to the last bit in any order of summing.

    A constant channel gets the standard deviation 1, so that dividing by it is safe.

    Args:
        sums: of `channel_sums`.
        pixels: in each channel.

    Example:
        >>> import torch
        >>> from lookaround.tasks.vision.data.images import moments
        >>> moments(torch.tensor([[255, 255 * 255]]), 2)
        ((0.5,), (0.5,))
    """
    means, stds = [], []
    for total, squares in sums.tolist():  # Python's integers do not overflow
        means.append(total / (255 * pixels))
        variance = (pixels * squares - total * total) / (255 * pixels) ** 2
        stds.append(math.sqrt(variance) if variance else 1.0)
    return tuple(means), tuple(stds)


def normalized(
    images: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32
) -> Tensor:
    """``(images / 255 - mean) / std`` per channel, on the images' own device.

    Args:
        images: uint8 ``(N, C, H, W)``.
        mean: per channel, on the scale [0, 1].
        std: per channel.
        dtype: of the result; the arithmetic is float32 (float64 for float64).
    """
    work = torch.float64 if dtype == torch.float64 else torch.float32
    moved, scaled = torch.tensor([mean, std], dtype=work, device=images.device).view(2, -1, 1, 1)
    return images.to(work).sub_(moved * 255).div_(scaled * 255).to(dtype)


def digest(parts: Sequence[tuple[Images, Tensor]]) -> str:
    """16 hexadecimal digits that change with any pixel, label or the order of them, wherever the images lie.

    Args:
        parts: the images and int64 labels of each split.
    """
    whole = hashlib.sha256()
    for images, labels in parts:
        found = _digests_in_memory(images) if isinstance(images, Tensor) else _on_disk(images).digests()
        whole.update(found.numpy().data)
        whole.update(labels.cpu().contiguous().numpy().data)
    return whole.hexdigest()[:16]


def _digests_in_memory(images: Tensor) -> Tensor:
    rows = images.cpu().contiguous().flatten(1).numpy()
    return torch.frombuffer(bytearray(b"".join(map(image_digest, rows))), dtype=torch.uint8)


def image_digest(pixels: object) -> bytes:
    """Of one image's bytes: anything with the buffer protocol."""
    return hashlib.blake2b(memoryview(pixels), digest_size=DIGEST_BYTES).digest()  # type: ignore[arg-type]
