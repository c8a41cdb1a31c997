"""The whole policies against torchvision's, image by image, with torchvision's draws put in its hands."""

from __future__ import annotations

from collections import Counter
from unittest import mock

import pytest
import torch
from torchvision.transforms import v2

from lookaround.tasks.vision.data import policies


def random_images(*shape: int) -> torch.Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


def torchvision_with(transform: v2.Transform, image: torch.Tensor, integers: list[int], reals: list[float]):
    """The transform's output when torch.randint and torch.rand give these numbers, in this order."""
    with (
        mock.patch("torch.randint", side_effect=[torch.tensor(value) for value in integers]),
        mock.patch("torch.rand", side_effect=[torch.tensor(value) for value in reals]),
    ):
        return transform(image)


@pytest.mark.parametrize("shape", [(96, 3, 32, 32), (96, 1, 8, 8), (24, 3, 96, 70)])
def test_rand_augment_is_torchvisions(shape):
    images = random_images(*shape)
    output = policies.rand_augment(images, torch.Generator().manual_seed(7))
    twin = torch.Generator().manual_seed(7)
    names = policies.RAND_AUGMENT_OPERATIONS
    draws = torch.randint(len(names), (2, len(images)), generator=twin)
    signs = torch.randint(2, (2, len(images)), generator=twin)
    assert names == tuple(v2.RandAugment._AUGMENTATION_SPACE)
    signed = [v2.RandAugment._AUGMENTATION_SPACE[name][1] for name in names]
    for n in range(len(images)):
        # torchvision negates when its real is at most 1/2, and draws one for signed operations alone.
        reals = [0.0 if signs[step, n] else 1.0 for step in range(2) if signed[draws[step, n]]]
        expected = torchvision_with(v2.RandAugment(), images[n], draws[:, n].tolist(), reals)
        assert torch.equal(output[n], expected), [names[index] for index in draws[:, n].tolist()]


@pytest.mark.parametrize(
    ("shape", "policy"),
    [((128, 3, 32, 32), v2.AutoAugmentPolicy.CIFAR10), ((48, 3, 65, 80), v2.AutoAugmentPolicy.IMAGENET)],
)
def test_auto_augment_is_torchvisions(shape, policy):
    images = random_images(*shape)
    output = policies.auto_augment(images, torch.Generator().manual_seed(9))
    twin = torch.Generator().manual_seed(9)
    chosen = torch.randint(25, shape[:1], generator=twin)
    applied = torch.rand(2, shape[0], generator=twin)
    signs = torch.randint(2, (2, shape[0]), generator=twin)
    transform = v2.AutoAugment(policy)
    for n in range(len(images)):
        reals = []
        for step, (name, probability, _) in enumerate(transform._policies[chosen[n]]):
            reals.append(applied[step, n].item())
            if applied[step, n] <= probability and v2.AutoAugment._AUGMENTATION_SPACE[name][1]:
                reals.append(0.0 if signs[step, n] else 1.0)
        expected = torchvision_with(transform, images[n], [chosen[n].item()], reals)
        assert torch.equal(output[n], expected), transform._policies[chosen[n]]


def test_rand_augment_draws_operations_uniformly_and_apart():
    """On an image whose 14 operations all look different, two draws an image give 14² pairs."""
    draws = torch.randint(14, (2, 5000), generator=torch.Generator().manual_seed(1))
    pairs = Counter(zip(*draws.tolist(), strict=True))
    images = random_images(1, 3, 16, 16).expand(5000, -1, -1, -1).contiguous()
    output = policies.rand_augment(images, torch.Generator().manual_seed(1))
    untouched = (output == images).flatten(1).all(1).sum()
    assert len(pairs) == 196
    assert untouched >= pairs[0, 0] > 0


def test_equalize_is_torchvisions_for_half_of_the_images():
    images = random_images(200, 3, 32, 32) // 3
    output = policies.random_equalize(images, torch.Generator().manual_seed(2))
    expected = v2.functional.equalize(images)
    equalized = (output == expected).flatten(1).all(1)
    same = (output == images).flatten(1).all(1)
    assert torch.equal(equalized, ~same)
    assert 75 < equalized.sum() < 125


@pytest.mark.parametrize("change", [policies.rand_augment, policies.auto_augment])
@pytest.mark.parametrize("channels", [2, 4])
def test_other_numbers_of_channels_are_refused(change, channels):
    with pytest.raises(ValueError, match=f"take images of 1 or 3 channels, got {channels}"):
        change(random_images(2, channels, 8, 8), torch.Generator())


def test_equalize_leaves_digits_alone():
    images = random_images(50, 1, 8, 8)
    assert torch.equal(policies.random_equalize(images, torch.Generator().manual_seed(0)), images)
