from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lookaround.experiment.batches import Batches, branch_augmentations, stream_seed
from lookaround.tasks.vision.data import augmentation, random_crop


@pytest.fixture
def batches(digits, tiny):
    return Batches(digits, tiny, seed=0)


def test_an_epoch_shows_no_image_twice_and_leaves_out_less_than_a_minibatch(batches):
    shown = torch.cat([minibatch.indices for minibatch in batches.epoch(0)])
    assert len(shown) == len(shown.unique()) == 60
    assert batches.per_epoch == 4


def test_epochs_and_seeds_are_shuffled_differently(batches, digits, tiny):
    orders = [next(batches.epoch(epoch)).indices.tolist() for epoch in (0, 1)]
    orders.append(next(Batches(digits, tiny, seed=1).epoch(0)).indices.tolist())
    assert len(set(map(tuple, orders))) == 3


def test_an_epoch_can_be_entered_in_the_middle(batches):
    whole = list(batches.epoch(3))
    rest = list(batches.epoch(3, start=2))
    assert [minibatch.index for minibatch in rest] == [2, 3]
    assert torch.equal(rest[0].indices, whole[2].indices)
    assert torch.equal(rest[0].copy(1), whole[2].copy(1))


def test_a_copy_depends_on_seed_epoch_minibatch_and_branch_and_on_no_history(batches, digits, tiny):
    one_kind = replace(tiny, augmentations=("shift",))
    first = next(Batches(digits, one_kind, seed=0).epoch(0))
    again = next(Batches(digits, one_kind, seed=0).epoch(0))
    again.copy(2), again.copy(0)
    torch.rand(1)
    assert torch.equal(first.copy(1), again.copy(1))
    assert not torch.equal(first.copy(1), first.copy(2))
    elsewhere = replace(first, epoch=1)
    assert not torch.equal(first.copy(1), elsewhere.copy(1))


def test_a_copy_is_crop_then_augmentation_then_normalization(digits, tiny):
    config = replace(tiny, crop_padding=2, augmentations=("none", "shift", "none"))
    minibatch = next(Batches(digits, config, seed=5).epoch(0))
    generator = torch.Generator().manual_seed(stream_seed(5, "copy", 0, 0, 1))
    images = random_crop(digits.train_images[minibatch.indices], 2, generator)
    expected = digits.normalize(augmentation("shift")(images, generator))
    assert torch.equal(minibatch.copy(1), expected)
    assert torch.equal(minibatch.labels, digits.train_labels[minibatch.indices])


def test_a_training_set_smaller_than_a_minibatch_is_one_minibatch(digits, tiny):
    batches = Batches(digits, replace(tiny, batch_size=1000), seed=0)
    (minibatch,) = batches.epoch(0)
    assert len(minibatch.labels) == 64


def test_channels_last_changes_the_layout_and_not_the_values(digits, tiny):
    color = replace(digits, train_images=digits.train_images.repeat(1, 3, 1, 1), mean=(0.5,) * 3, std=(0.2,) * 3)
    plain = next(Batches(color, tiny, seed=0).epoch(0)).copy(0)
    last = next(Batches(color, replace(tiny, channels_last=True), seed=0).epoch(0)).copy(0)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, last)


def test_augmentations_are_the_data_sets_own_or_as_named(tiny):
    assert [branch.name for branch in branch_augmentations(tiny)] == ["shift", "small-rotation", "perspective"]
    named = replace(tiny, augmentations=("none",))
    assert [branch.name for branch in branch_augmentations(named)] == ["none"] * 3
    with pytest.raises(ValueError, match="unknown augmentation 'nosuch'"):
        branch_augmentations(replace(tiny, augmentations=("nosuch",)))


def test_streams_differ_in_every_part_and_in_their_order():
    seeds = [stream_seed(*parts) for parts in ((0, 1), (1, 0), (0, "1"), (0, 1, 0), ("order", 0), ("copy", 0))]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
