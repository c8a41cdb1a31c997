"""Flips, crops, shifts, rotations and perspectives of image batches, drawn per image.

All take uint8 ``(N, C, H, W)`` and a CPU generator. The few numbers an image needs are drawn on the CPU and moved, so
that a run sees the same images on every device; the pixels are worked on where they are.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

FLIP_PROBABILITY = 0.5
ROTATION_DEGREES = 15.0
SMALL_ROTATION_DEGREES = 10.0
SHIFT_FRACTION = 8
PERSPECTIVE_PROBABILITY = 0.5
DISTORTION_SCALE = 0.5


def horizontal_flip(images: Tensor, generator: Generator) -> Tensor:
    """Mirrors each image left to right with probability 1/2."""
    return _flip(images, generator, -1)


def vertical_flip(images: Tensor, generator: Generator) -> Tensor:
    """Turns each image upside down with probability 1/2."""
    return _flip(images, generator, -2)


def _flip(images: Tensor, generator: Generator, dim: int) -> Tensor:
    flipped = (torch.rand(len(images), generator=generator) < FLIP_PROBABILITY).to(images.device)
    return torch.where(flipped.view(-1, 1, 1, 1), images.flip(dim), images)


def random_crop(images: Tensor, padding: int, generator: Generator) -> Tensor:
    """Moves each image by up to ``padding`` pixels in both directions and fills with zeros.

    The same as padding every side with ``padding`` zeros and cutting a window of the old size at a place that is
    uniform over the (2 padding + 1)² there are. Draws two integers an image, whatever ``padding`` is.

    Args:
        images: uint8 ``(N, C, H, W)``, on any device.
        padding: in pixels, at least 0.
        generator: on the CPU.

    Raises:
        ValueError: for a negative padding.

    Example:
        >>> import torch
        >>> from lookaround.tasks.vision.data import random_crop
        >>> images = torch.full((4, 1, 8, 8), 255, dtype=torch.uint8)
        >>> random_crop(images, 2, torch.Generator().manual_seed(0)).shape
        torch.Size([4, 1, 8, 8])
    """
    if padding < 0:
        raise ValueError(f"padding must be at least 0 pixels, got {padding}")
    top, left = torch.randint(2 * padding + 1, (2, len(images), 1), generator=generator).to(images.device)
    height, width = images.shape[-2:]
    rows = top + torch.arange(height, device=images.device)
    columns = left + torch.arange(width, device=images.device)
    source = rows.unsqueeze(2) * (width + 2 * padding) + columns.unsqueeze(1)
    padded = torch.nn.functional.pad(images, (padding,) * 4).flatten(2)
    return take_pixels(padded, source.flatten(1)).view_as(images)


def take_pixels(pixels: Tensor, source: Tensor) -> Tensor:
    """``out[n, c, i] = pixels[n, c, source[n, i]]`` for pixels ``(N, C, P)`` and int64 sources ``(N, Q)``."""
    return pixels.gather(2, source.unsqueeze(1).expand(-1, pixels.shape[1], -1))


def shift(images: Tensor, generator: Generator) -> Tensor:
    """Moves each image by up to an eighth of its longer side (at least one pixel) in both directions."""
    return random_crop(images, max(1, max(images.shape[-2:]) // SHIFT_FRACTION), generator)


def rotation(images: Tensor, generator: Generator) -> Tensor:
    """Rotates each image about its centre by up to ±15 degrees, taking the nearest pixel."""
    return _rotate(images, generator, ROTATION_DEGREES, "nearest")


def small_rotation(images: Tensor, generator: Generator) -> Tensor:
    """Rotates each image about its centre by up to ±10 degrees, interpolating; meant for digits."""
    return _rotate(images, generator, SMALL_ROTATION_DEGREES, "bilinear")


def _rotate(images: Tensor, generator: Generator, degrees: float, mode: str) -> Tensor:
    uniform = torch.rand(len(images), generator=generator, dtype=torch.float64)
    return rotate_by(images, (2 * uniform - 1) * degrees, mode)


def rotate_by(images: Tensor, degrees: Tensor, mode: str) -> Tensor:
    """Rotates image n counter-clockwise about its centre by ``degrees[n]``; the uncovered corners are zero.

    Args:
        images: uint8 ``(N, C, H, W)``.
        degrees: float64 ``(N,)`` on the CPU.
        mode: ``"nearest"`` or ``"bilinear"``.
    """
    height, width = images.shape[-2:]
    cosine, sine = degrees.deg2rad().cos(), degrees.deg2rad().sin()
    inverse = torch.stack([cosine, -sine, sine, cosine], 1).view(-1, 2, 2).float()
    # Columns are scaled to grid_sample's coordinates, in which the image spans [-1, 1] whatever its size.
    to_source = (inverse.transpose(1, 2) / torch.tensor([width / 2, height / 2])).to(images.device)
    x = torch.linspace((1 - width) / 2, (width - 1) / 2, width, device=images.device)
    y = torch.linspace((1 - height) / 2, (height - 1) / 2, height, device=images.device)
    points = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).view(1, -1, 2)
    grid = points.expand(len(images), -1, -1).bmm(to_source)
    return _sample(images, grid.view(-1, height, width, 2), mode)


def perspective(images: Tensor, generator: Generator) -> Tensor:
    """Views each image at a random slant with probability 1/2, interpolating.

    Each corner moves inwards by a whole number of pixels, uniform from 0 to a quarter of the side (torchvision's
    ``RandomPerspective`` at its defaults, a distortion scale of 0.5).
    """
    height, width = images.shape[-2:]
    inwards = torch.tensor([int(DISTORTION_SCALE * (side // 2)) + 1 for side in (width, height)])
    draw = torch.rand(len(images), 4, 2, generator=generator, dtype=torch.float64)
    moved = (draw * inwards).floor()
    slanted = torch.rand(len(images), generator=generator) < PERSPECTIVE_PROBABILITY
    sign = torch.tensor([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    chosen = slanted.nonzero().flatten()
    rows = chosen.to(images.device)
    output = images.clone()
    output[rows] = perspective_to(images[rows], corners(height, width) + sign * moved[chosen])
    return output


def resized_crop(images: Tensor, generator: Generator) -> Tensor:
    """A random part of each image, scaled to its size with bilinear interpolation.

    The part has 8 to 100 % of the area and sides of 3:4 to 4:3 (the logarithm of the ratio is uniform), cut to the image where it would
    not fit: torchvision's ``RandomResizedCrop`` at its defaults, but for drawing again there.
    """
    height, width = images.shape[-2:]
    draw = torch.rand(len(images), 4, generator=generator, dtype=torch.float64)
    area = 0.08 + 0.92 * draw[:, 0]
    ratio = torch.exp((2 * draw[:, 1] - 1) * math.log(4 / 3))
    sides = torch.stack([(area * ratio * height / width).sqrt(), (area / ratio * width / height).sqrt()], 1).clamp(
        max=1
    )
    centre = (1 - sides) * (2 * draw[:, 2:] - 1)
    theta = torch.zeros(len(images), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = sides[:, 0].float(), sides[:, 1].float()
    theta[:, :, 2] = centre.float()
    grid = torch.nn.functional.affine_grid(theta.to(images.device), list(images.shape), align_corners=False)
    pixels = torch.nn.functional.grid_sample(
        images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return pixels.round_().to(torch.uint8)


def corners(height: int, width: int) -> Tensor:
    """An image's corner pixels (x, y), clockwise from the top left: float64 ``(4, 2)``."""
    right, bottom = width - 1.0, height - 1.0
    return torch.tensor([[0, 0], [right, 0], [right, bottom], [0, bottom]], dtype=torch.float64)


def perspective_to(images: Tensor, ends: Tensor) -> Tensor:
    """The projective map that takes the corners of image n to ``ends[n]``, with bilinear interpolation.

    Args:
        images: uint8 ``(N, C, H, W)``.
        ends: float64 ``(N, 4, 2)`` on the CPU, in the order of `corners`.
    """
    height, width = images.shape[-2:]
    a = _backward_projection(corners(height, width), ends).float()
    denominator = torch.stack([a[:, 6], a[:, 7], torch.ones(len(a))], 1).unsqueeze(2)
    numerator = a[:, :6].view(-1, 2, 3).transpose(1, 2) / torch.tensor([width / 2, height / 2])
    x = torch.arange(width, device=images.device) + 0.5
    y = torch.arange(height, device=images.device) + 0.5
    points = torch.stack([*torch.meshgrid(x, y, indexing="xy"), torch.ones(height, width, device=images.device)], -1)
    points = points.view(1, -1, 3).expand(len(images), -1, -1)
    grid = points.bmm(numerator.to(images.device)) / points.bmm(denominator.to(images.device)) - 1
    return _sample(images, grid.view(-1, height, width, 2), "bilinear")


def _backward_projection(starts: Tensor, ends: Tensor) -> Tensor:
    """The eight coefficients that take each ``ends`` point (x, y) back to its ``starts`` point (u, v).

    u = (a₀x + a₁y + a₂) / (a₆x + a₇y + 1) and v = (a₃x + a₄y + a₅) / (a₆x + a₇y + 1) for four points are eight linear
    equations in a.
    """
    x, y = ends.unbind(2)
    u, v = starts.expand_as(ends).unbind(2)
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    for_u = torch.stack([x, y, one, zero, zero, zero, -u * x, -u * y], 2)
    for_v = torch.stack([zero, zero, zero, x, y, one, -v * x, -v * y], 2)
    equations, values = torch.stack([for_u, for_v], 2).flatten(1, 2), starts.reshape(8, 1).expand(len(ends), -1, -1)
    # Least squares where solving would do, in this order of rows: torchvision does so, and pixels can turn on the
    # last bit of a coefficient.
    coefficients: Tensor = torch.linalg.lstsq(equations, values, driver="gels").solution.squeeze(2)
    return coefficients


def _sample(images: Tensor, grid: Tensor, mode: str) -> Tensor:
    pixels = torch.nn.functional.grid_sample(images.float(), grid, mode=mode, align_corners=False)
    return pixels.round_().to(torch.uint8)
