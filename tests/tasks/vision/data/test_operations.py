from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional

from lookaround.tasks.vision.data.operations import (
    CURVES,
    IDENTITY,
    MOVES,
    Operation,
    magnitude,
    operation_table,
    signed_pair,
)

NAMES = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color"),
    *("Contrast", "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize", "Invert"),
)
SHAPES = st.tuples(st.integers(1, 12), st.sampled_from([1, 3]), st.integers(1, 40), st.integers(1, 40))


def random_images(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Images of all kinds: noise over all values, over few values, and one constant image."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    images[1::3] = images[1::3] // 16 + 100
    images[2::5] = 77
    return images


@settings(max_examples=80, deadline=None, derandomize=True)
@given(SHAPES, st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 30), st.booleans())), st.integers(0, 2**31))
def test_a_mixed_batch_is_torchvisions_operation_on_each_image(shape, drawn, seed):
    drawn = drawn or [("Identity", 0, False)]
    operations = [signed_pair(name, level, 31, *shape[2:])[negative] for name, level, negative in drawn]
    distinct = tuple(dict.fromkeys(operations))
    images = random_images(shape, seed)
    before = images.clone()
    which = torch.randint(len(distinct), shape[:1], generator=torch.Generator().manual_seed(seed))
    output = operation_table(distinct, *shape[2:], images.device).apply(images, which)
    assert output.dtype == torch.uint8
    assert torch.equal(images, before)
    for n, index in enumerate(which.tolist()):
        assert torch.equal(output[n], distinct[index](images[n])), distinct[index]


@pytest.mark.parametrize(
    ("name", "amount", "expected"),
    [
        ("Identity", 0.0, lambda image: image),
        ("Rotate", -9.0, lambda image: functional.rotate(image, -9.0)),
        ("TranslateX", 4.35, lambda image: functional.pad(image, [4, 0, 0, 0])[..., :-4]),
        ("TranslateX", -4.35, lambda image: functional.pad(image, [0, 0, 4, 0])[..., 4:]),
        ("TranslateY", 3.0, lambda image: functional.pad(image, [0, 3, 0, 0])[..., :-3, :]),
        ("Brightness", 0.27, lambda image: (image * 1.27).clamp(0, 255).to(torch.uint8)),
        ("Color", -0.27, lambda image: functional.adjust_saturation(image, 0.73)),
        ("Contrast", 0.27, lambda image: functional.adjust_contrast(image, 1.27)),
        ("Sharpness", -0.27, lambda image: functional.adjust_sharpness(image, 0.73)),
        ("Posterize", 7, lambda image: image & 254),
        ("Solarize", 178.5, lambda image: torch.where(image > 178, 255 - image, image)),
        ("AutoContrast", 0.0, functional.autocontrast),
        ("Equalize", 0.0, functional.equalize),
        ("Invert", 0.0, lambda image: 255 - image),
    ],
)
def test_each_operation_in_its_own_unit(name, amount, expected):
    images = random_images((3, 3, 16, 20), seed=1)
    table = operation_table((Operation(name, amount),), 16, 20, images.device)
    assert torch.equal(table.apply(images, torch.zeros(3, dtype=torch.int64)), expected(images))


@pytest.mark.parametrize("sign", [1, -1])
def test_shears_move_row_r_by_the_magnitude_times_r(sign):
    """ShearX maps (x, y) to (x + m·y, y) about the corner: output pixel (x, y) shows input pixel (x - m·y, y)."""
    images = random_images((1, 1, 9, 9), seed=2)
    for name, turn in (("ShearX", lambda image: image), ("ShearY", lambda image: image.transpose(-1, -2))):
        image = turn(images)[0, 0]
        output = turn(Operation(name, sign * 0.25)(images))[0, 0]
        for y in range(9):
            shifts = {
                shift
                for shift in range(-8, 9)
                if all(output[y, x] == (image[y, x + shift] if 0 <= x + shift < 9 else 0) for x in range(9))
            }
            assert shifts & {round(sign * 0.25 * (y + 0.5) + nudge) for nudge in (-1e-3, 1e-3)}, (name, y, shifts)


def test_magnitudes_follow_the_published_ranges():
    level = {name: magnitude(name, 9, 31, 32, 64) for name in NAMES}
    assert level["ShearX"] == level["ShearY"] == pytest.approx(0.09)
    assert level["TranslateX"] == pytest.approx(64 * 150 / 331 * 0.3)
    assert level["TranslateY"] == pytest.approx(32 * 150 / 331 * 0.3)
    assert level["Rotate"] == pytest.approx(9)
    assert all(level[name] == pytest.approx(0.27) for name in ("Brightness", "Color", "Contrast", "Sharpness"))
    assert level["Posterize"] == 7
    assert level["Solarize"] == pytest.approx(178.5)
    assert [magnitude("Posterize", index, 10, 8, 8) for index in range(10)] == [8, 8, 7, 7, 6, 6, 5, 5, 4, 4]


def test_only_signed_operations_have_two_signs():
    for name in NAMES:
        positive, negative = signed_pair(name, 9, 31, 32, 32)
        signed = name in MOVES or name in {"Brightness", "Color", "Contrast", "Sharpness"}
        assert (positive != negative) == signed
        assert negative.magnitude == (-positive.magnitude if signed else positive.magnitude)
    assert signed_pair("Identity", 9, 31, 32, 32) == (IDENTITY, IDENTITY)
    assert not MOVES & CURVES


def test_tables_are_kept():
    operations = (Operation("Rotate", 9.0), Operation("Invert"))
    first = operation_table(operations, 8, 8, torch.device("cpu"))
    assert operation_table(operations, 8, 8, torch.device("cpu")) is first
