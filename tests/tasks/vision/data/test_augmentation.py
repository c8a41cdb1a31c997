from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lookaround.tasks.vision.data import AUGMENTATIONS, augmentation, default_augmentations

SHAPES = st.tuples(st.integers(0, 5), st.sampled_from([1, 3]), st.integers(4, 33), st.integers(4, 33))


def random_images(*shape: int) -> torch.Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", AUGMENTATIONS)
@settings(max_examples=15, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 2**31))
def test_shape_dtype_input_and_stream(name, shape, seed):
    images = random_images(*shape)
    before = images.clone()
    generator = torch.Generator().manual_seed(seed)
    first = augmentation(name)(images, generator)
    state = generator.get_state()
    second = augmentation(name)(images, generator)
    assert first.shape == second.shape == images.shape
    assert first.dtype == second.dtype == torch.uint8
    assert torch.equal(images, before)
    assert torch.equal(augmentation(name)(images, torch.Generator().manual_seed(seed)), first)
    resumed = torch.Generator()
    resumed.set_state(state)
    assert torch.equal(augmentation(name)(images, resumed), second)


@pytest.mark.parametrize("name", [name for name in AUGMENTATIONS if name != "none"])
def test_images_are_drawn_one_by_one_and_from_the_generator_alone(name):
    image = random_images(1, 3, 32, 32) // 2
    images = image.expand(64, -1, -1, -1).contiguous()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    output = augmentation(name)(images, torch.Generator().manual_seed(0))
    assert len(output.flatten(1).unique(dim=0)) > 1
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(augmentation(name)(images, torch.Generator().manual_seed(1)), output)


def test_none_draws_nothing():
    images, generator = random_images(3, 1, 8, 8), torch.Generator().manual_seed(0)
    state = generator.get_state()
    assert torch.equal(augmentation("none")(images, generator), images)
    assert torch.equal(generator.get_state(), state)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_channels_last_images_give_the_same_pixels(name):
    images = random_images(16, 3, 12, 10)
    expected = augmentation(name)(images, torch.Generator().manual_seed(0))
    strided = images.to(memory_format=torch.channels_last)
    assert torch.equal(augmentation(name)(strided, torch.Generator().manual_seed(0)), expected)


def test_large_images():
    for name in AUGMENTATIONS:
        assert augmentation(name)(random_images(2, 3, 224, 224), torch.Generator()).shape == (2, 3, 224, 224)


@pytest.mark.parametrize("bad", [torch.zeros(2, 3, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8)])
def test_other_tensors_are_refused(bad):
    with pytest.raises(ValueError, match=r"none takes uint8 images of shape \(N, C, H, W\), got torch"):
        augmentation("none")(bad, torch.Generator())


def test_unknown_name():
    with pytest.raises(ValueError, match="unknown augmentation 'mixup'; choose among none, horizontal-flip"):
        augmentation("mixup")


def test_default_augmentations_are_the_papers_in_order():
    assert default_augmentations("cifar100", 3) == ["horizontal-flip", "vertical-flip", "rand-augment"]
    assert default_augmentations("my-photos", 6)[3:] == ["auto-augment", "perspective", "equalize"]
    assert default_augmentations("digits", 3) == ["shift", "small-rotation", "perspective"]
    assert not any("flip" in name for name in default_augmentations("digits", 5))
    for name, most in (("digits", 5), ("cifar10", 6)):
        assert len(set(default_augmentations(name, most))) == most
        assert set(default_augmentations(name, most)) <= set(AUGMENTATIONS)


@pytest.mark.parametrize(("name", "branches"), [("digits", 6), ("cifar10", 7), ("folder", 0), ("digits", -1)])
def test_default_augmentations_refuse(name, branches):
    with pytest.raises(ValueError, match=f"{name} has default augmentations for 1 to . branches, got {branches}"):
        default_augmentations(name, branches)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_cuda_draws_the_same(name):
    images = random_images(64, 3, 32, 32)
    expected = augmentation(name)(images, torch.Generator().manual_seed(0))
    output = augmentation(name)(images.cuda(), torch.Generator().manual_seed(0))
    assert output.is_cuda
    # Interpolated and blended pixels may round to the neighbouring byte, and a point half-way between two pixels to
    # the other one; another draw would change whole images.
    differing = (output.cpu().int() - expected.int()).abs() > 1
    assert differing.float().mean() < 1e-3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_generator_is_refused():
    with pytest.raises(ValueError, match="takes a CPU generator"):
        augmentation("none")(random_images(1, 3, 8, 8).cuda(), torch.Generator("cuda"))
