from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lookaround.tasks.base import Minibatch
from lookaround.tasks.streams import stream_seed
from lookaround.tasks.vision import VisionConfig
from lookaround.tasks.vision.batches import ImageBatches, branch_augmentations
from lookaround.tasks.vision.data import augmentation, random_crop

PLAIN = VisionConfig(augmentations=("none",))
SHARED = replace(PLAIN, copies="shared")


def numbered(digits):
    """The digits' images, each of one grey level that is its number."""
    images = torch.arange(64, dtype=torch.uint8).view(64, 1, 1, 1).expand(64, 1, 8, 8)
    return replace(digits, train_images=images, mean=(0.0,), std=(1 / 255,))


def shown(batches: ImageBatches, branch: int, positions: range) -> list[int]:
    """The numbers of the images that a branch sees."""
    copies = [batches.copy(position, branch) for position in positions]
    return [int(number) for copy in copies for number in copy.inputs[:, 0, 0, 0]]


@pytest.mark.parametrize("config", [PLAIN, SHARED])
@pytest.mark.parametrize("branch", [0, 2])
def test_an_epoch_shows_no_image_twice_and_leaves_out_less_than_a_minibatch(digits, config, branch):
    batches = ImageBatches(numbered(digits), config, 0, 15, 3)
    assert (batches.per_epoch, batches.units, batches.branches) == (4, 15, 3)
    numbers = shown(batches, branch, range(4))
    assert len(numbers) == len(set(numbers)) == 60


def test_shared_copies_are_of_one_minibatch_and_independent_ones_of_three(digits):
    shared, own = (ImageBatches(numbered(digits), config, 0, 15, 3) for config in (SHARED, PLAIN))
    assert len({tuple(shown(shared, branch, range(4))) for branch in range(3)}) == 1
    orders = [shown(own, branch, range(4)) for branch in range(3)]
    assert len(set(map(tuple, orders))) == 3
    labels = own.copy(1, 2).targets
    assert torch.equal(labels, digits.train_labels[orders[2][15:30]])


def test_epochs_and_seeds_are_shuffled_differently(digits):
    first = ImageBatches(numbered(digits), PLAIN, 0, 15, 3)
    other = ImageBatches(numbered(digits), PLAIN, 1, 15, 3)
    orders = [shown(first, 0, range(4)), shown(first, 0, range(4, 8)), shown(other, 0, range(4))]
    assert len(set(map(tuple, orders))) == 3


@pytest.mark.parametrize("copies", ["shared", "independent"])
def test_a_copy_depends_on_seed_position_and_branch_and_on_no_history(digits, copies):
    config = VisionConfig(augmentations=("shift",), copies=copies)
    one, two = (ImageBatches(digits, config, 0, 15, 3) for _ in range(2))
    two.copy(7, 2), two.copy(0, 1)
    torch.rand(1)
    for position in (6, 1):
        assert torch.equal(one.copy(position, 1).inputs, two.copy(position, 1).inputs)
    assert not torch.equal(one.copy(1, 1).inputs, one.copy(1, 2).inputs)
    assert not torch.equal(one.copy(1, 1).inputs, one.copy(5, 1).inputs)


def test_a_copy_is_crop_then_augmentation_then_normalization(digits):
    config = VisionConfig(crop_padding=2, augmentations=("none", "shift", "none"))
    batches = ImageBatches(digits, config, 5, 15, 3)
    copy = Minibatch(batches, 0).copy(1)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(stream_seed(5, "order", 0, 1)))[:15]
    generator = torch.Generator().manual_seed(stream_seed(5, "copy", 0, 0, 1))
    images = random_crop(digits.train_images[order], 2, generator)
    assert torch.equal(copy.inputs, digits.normalize(augmentation("shift")(images, generator)))
    assert torch.equal(copy.targets, digits.train_labels[order])
    assert copy.size == 15


def test_a_training_set_smaller_than_a_minibatch_is_one_minibatch(digits):
    batches = ImageBatches(digits, PLAIN, 0, 1000, 3)
    assert (batches.per_epoch, batches.units, len(batches.copy(0, 0).targets)) == (1, 64, 64)


def test_channels_last_changes_the_layout_and_not_the_values(digits):
    color = replace(digits, train_images=digits.train_images.repeat(1, 3, 1, 1), mean=(0.5,) * 3, std=(0.2,) * 3)
    plain = ImageBatches(color, PLAIN, 0, 15, 1).copy(0, 0).inputs
    last = ImageBatches(color, replace(PLAIN, channels_last=True), 0, 15, 1).copy(0, 0).inputs
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, last)


def test_augmentations_are_the_data_sets_own_or_as_named():
    names = [branch.name for branch in branch_augmentations(VisionConfig(), 3)]
    assert names == ["shift", "small-rotation", "perspective"]
    assert [branch.name for branch in branch_augmentations(PLAIN, 4)] == ["none"] * 4
    assert [branch.name for branch in branch_augmentations(VisionConfig(), 4)] == [*names, "shift"]
    with pytest.raises(ValueError, match="unknown augmentation 'nosuch'"):
        branch_augmentations(VisionConfig(augmentations=("nosuch",)), 3)
