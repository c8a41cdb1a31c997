from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from lookaround.tasks.vision.data import geometry, random_crop

SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 24), st.integers(1, 24))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator(seed))


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.integers(0, 5), st.integers(0, 2**31))
def test_each_crop_is_a_window_of_the_padded_image(shape, padding, seed):
    images = random_images(*shape, seed=seed)
    cropped = random_crop(images, padding, generator(seed))
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    top, left = torch.randint(2 * padding + 1, (2, shape[0], 1), generator=generator(seed)).tolist()
    for n in range(shape[0]):
        y, x = top[n][0], left[n][0]
        assert torch.equal(cropped[n], padded[n, :, y : y + shape[2], x : x + shape[3]])


def test_crops_are_drawn_per_image_and_reach_every_place():
    images = torch.zeros(3000, 1, 3, 3, dtype=torch.uint8)
    images[:, 0, 1, 1] = 1
    places = random_crop(images, 1, generator()).flatten(1).argmax(1).bincount(minlength=9)
    assert places.min() > 3000 / 9 * 0.75
    assert places.max() < 3000 / 9 * 1.25


def test_crop_refuses_negative_padding():
    with pytest.raises(ValueError, match="padding must be at least 0 pixels, got -1"):
        random_crop(random_images(1, 1, 4, 4), -1, generator())


def test_shift_moves_by_an_eighth_of_the_side():
    for side, most in ((8, 1), (32, 4), (4, 1)):
        images = random_images(64, 2, side, side)
        assert torch.equal(geometry.shift(images, generator()), random_crop(images, most, generator()))


@pytest.mark.parametrize(
    ("flip", "expected"),
    [(geometry.horizontal_flip, functional.horizontal_flip), (geometry.vertical_flip, functional.vertical_flip)],
)
def test_flips_are_torchvisions_for_half_of_the_images(flip, expected):
    images = random_images(400, 3, 7, 5)
    output = flip(images, generator())
    flipped = [torch.equal(output[n], expected(images[n])) for n in range(400)]
    same = [torch.equal(output[n], images[n]) for n in range(400)]
    assert all(one != other for one, other in zip(flipped, same, strict=True))
    assert 160 < sum(flipped) < 240


@settings(max_examples=60, deadline=None, derandomize=True)
@given(SHAPES, st.integers(0, 2**31), st.sampled_from([5.0, 15.0, 90.0, 180.0]))
def test_nearest_rotation_is_torchvisions_pixel_for_pixel(shape, seed, most):
    images = random_images(*shape, seed=seed)
    degrees = (2 * torch.rand(shape[0], dtype=torch.float64, generator=generator(seed)) - 1) * most
    output = geometry.rotate_by(images, degrees, "nearest")
    for n in range(shape[0]):
        assert torch.equal(output[n], functional.rotate(images[n], degrees[n].item()))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(SHAPES, st.integers(0, 2**31))
def test_bilinear_rotation_is_torchvisions_pixel_for_pixel(shape, seed):
    images = random_images(*shape, seed=seed)
    degrees = 20 * torch.rand(shape[0], dtype=torch.float64, generator=generator(seed)) - 10
    output = geometry.rotate_by(images, degrees, "bilinear")
    for n in range(shape[0]):
        assert torch.equal(
            output[n], functional.rotate(images[n], degrees[n].item(), interpolation=InterpolationMode.BILINEAR)
        )


@pytest.mark.parametrize(
    ("rotate", "most", "mode"), [(geometry.rotation, 15, "nearest"), (geometry.small_rotation, 10, "bilinear")]
)
def test_rotations_draw_an_angle_an_image(rotate, most, mode):
    images = random_images(32, 1, 16, 16)
    degrees = (2 * torch.rand(32, dtype=torch.float64, generator=generator(4)) - 1) * most
    assert torch.equal(rotate(images, generator(4)), geometry.rotate_by(images, degrees, mode))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(8, 40), st.integers(8, 40)), st.integers(0, 2**31))
def test_perspective_is_torchvisions_pixel_for_pixel(shape, seed):
    images = random_images(*shape, seed=seed)
    starts = geometry.corners(*shape[2:])
    inwards = torch.randint(0, max(1, min(shape[2:]) // 4), (shape[0], 4, 2), generator=generator(seed))
    ends = starts + inwards * torch.tensor([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    output = geometry.perspective_to(images, ends)
    for n in range(shape[0]):
        expected = functional.perspective(images[n], starts.long().tolist(), ends[n].long().tolist())
        assert torch.equal(output[n], expected)


def test_perspective_slants_half_of_the_images_within_its_bounds():
    images = torch.full((400, 1, 32, 32), 255, dtype=torch.uint8)
    output = geometry.perspective(images, generator())
    slanted = (output == 0).flatten(1).any(1)
    assert 160 < slanted.sum() < 240
    assert torch.equal(output[~slanted], images[~slanted])
    assert (output[:, :, 9:23, 9:23] == 255).all()
    assert len({tuple(image.flatten().tolist()) for image in output[slanted]}) > 150
