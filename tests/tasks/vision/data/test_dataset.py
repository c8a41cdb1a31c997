from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lookaround.tasks.vision.data import DataError, ImageData


def make(labels: list[int], channels: int = 3, side: int = 4) -> ImageData:
    """Images whose first pixel's two channels hold the image's number, so that a selection can be traced."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (len(labels), channels, side, side), dtype=torch.uint8, generator=generator)
    numbers = torch.arange(len(labels))
    images[:, 0, 0, 0], images[:, 0, 0, 1] = (numbers // 256).to(torch.uint8), (numbers % 256).to(torch.uint8)
    target = torch.tensor(labels)
    classes = [f"class {label}" for label in range(max(labels) + 1)]
    return ImageData.from_images("toy", images, target, images.clone(), target.clone(), classes)


def numbers_of(images: torch.Tensor) -> list[int]:
    return (images[:, 0, 0, 0].long() * 256 + images[:, 0, 0, 1]).tolist()


def test_mean_and_std_are_those_of_the_training_images():
    data = make([0, 1] * 50)
    pixels = data.train_images.double() / 255
    torch.testing.assert_close(torch.tensor(data.mean).double(), pixels.mean((0, 2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(torch.tensor(data.std).double(), pixels.std((0, 2, 3), correction=0), rtol=1e-6, atol=0)


def test_a_constant_channel_has_std_one():
    images = torch.full((4, 1, 2, 2), 51, dtype=torch.uint8)
    labels = torch.zeros(4, dtype=torch.int64)
    data = ImageData.from_images("flat", images, labels, images, labels, ["only"])
    assert data.mean == pytest.approx((0.2,))
    assert data.std == (1.0,)
    torch.testing.assert_close(data.normalize(images), torch.zeros(4, 1, 2, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_normalize(dtype):
    data = make([0, 1, 2])
    mean, std = torch.tensor(data.mean).view(-1, 1, 1), torch.tensor(data.std).view(-1, 1, 1)
    result = data.normalize(data.test_images, dtype)
    assert result.dtype == dtype
    before = data.test_images.clone()
    torch.testing.assert_close(result, ((data.test_images / 255 - mean) / std).to(dtype), rtol=1e-2, atol=1e-5)
    assert torch.equal(data.test_images, before)
    if dtype != torch.bfloat16:
        torch.testing.assert_close(result, ((data.test_images / 255 - mean) / std).to(dtype), rtol=1e-5, atol=1e-6)


def test_subset_is_balanced_even_where_classes_are_not():
    data = make([0] * 90 + [1] * 8 + [2] * 40)
    assert data.subset(30, None, seed=0).train_labels.bincount().tolist() == [11, 8, 11]
    assert data.subset(9, None, seed=0).train_labels.bincount().tolist() == [3, 3, 3]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=80), st.data(), st.integers(0, 2**31))
def test_subset_properties(labels, draw, seed):
    data = make(labels)
    count = draw.draw(st.integers(1, len(labels)))
    part = data.subset(count, None, seed)
    chosen = numbers_of(part.train_images)
    assert len(chosen) == count
    assert chosen == sorted(set(chosen))
    assert torch.equal(part.train_labels, data.train_labels[chosen])
    assert torch.equal(part.test_images, data.test_images)
    available = torch.bincount(data.train_labels)
    taken = torch.bincount(part.train_labels, minlength=len(available))
    unfilled = taken[taken < available]
    assert not len(unfilled) or int(taken.max() - unfilled.min()) <= 1
    assert numbers_of(data.subset(count, None, seed).train_images) == chosen
    if count > 1:
        assert set(numbers_of(data.subset(count - 1, None, seed).train_images)) < set(chosen)


def test_subsets_of_other_seeds_differ_and_statistics_follow():
    data = make([0, 1] * 100)
    one, two = data.subset(20, 10, seed=1), data.subset(20, 10, seed=2)
    assert numbers_of(one.train_images) != numbers_of(two.train_images)
    assert len(one.test_labels) == 10
    assert one.mean == pytest.approx((one.train_images.double() / 255).mean((0, 2, 3)).tolist())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=80), st.data(), st.integers(0, 2**31))
def test_hold_out_properties(labels, draw, seed):
    data = make(labels)
    count = draw.draw(st.integers(1, len(labels) - 1))
    rest, images, held_labels = data.hold_out(count, seed)
    held, kept = numbers_of(images), numbers_of(rest.train_images)
    assert len(held) == count
    assert sorted(held + kept) == list(range(len(labels)))
    assert torch.equal(held_labels, data.train_labels[held])
    assert torch.equal(rest.train_labels, data.train_labels[kept])
    assert numbers_of(data.hold_out(count, seed)[1]) == held
    assert rest.mean == pytest.approx((rest.train_images.double() / 255).mean((0, 2, 3)).tolist())


def test_hold_out_keeps_each_class_s_share():
    data = make([0] * 100 + [1] * 50 + [2] * 10)
    assert data.hold_out(0.1, seed=3)[2].bincount().tolist() == [10, 5, 1]
    assert data.hold_out(32, seed=3)[2].bincount().tolist() == [20, 10, 2]


@pytest.mark.parametrize("amount", [0.0, 1.0, -0.5, 1.5, 0, 10, -1])
def test_hold_out_refuses(amount):
    with pytest.raises(ValueError, match=r"the part to hold out must lie between 0 and 1|takes 1 to 9 images"):
        make([0, 1] * 5).hold_out(amount, 0)


@pytest.mark.parametrize("count", [0, 11, -3])
def test_subset_refuses(count):
    with pytest.raises(ValueError, match=f"takes 1 to 10 images, got {count}"):
        make([0, 1] * 5).subset(count, None, 0)
    with pytest.raises(ValueError, match=f"the test images of toy takes 1 to 10 images, got {count}"):
        make([0, 1] * 5).subset(None, count, 0)


def test_from_images_refuses_what_is_not_labelled_images():
    images, labels = torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    for bad, match in (
        ((images.float(), labels, images, labels), "toy: training images must be uint8 .* got torch.float32"),
        ((images, labels, images[:0], labels[:0]), "toy: test images must be uint8"),
        ((images, labels[:1], images, labels), "toy: training labels must be int64, one an image"),
        ((images, labels + 1, images, labels), "toy: training labels must be 0 to 0, they are 1 to 1"),
        ((images, labels, images[..., :3], labels), "one shape"),
    ):
        with pytest.raises(DataError, match=match):
            ImageData.from_images("toy", *bad, ["only"])
