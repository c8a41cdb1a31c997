"""Random training labels: which, how many, the same for every run, and never those that a method is judged by."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lookaround.tasks.vision import VisionConfig, VisionTask
from lookaround.tasks.vision.data.digits import load_digits

CPU = torch.device("cpu")


@given(st.floats(0, 1), st.integers(0, 5))
def test_noise_draws_labels_anew_for_exactly_its_share_and_keeps_everything_else(share, seed):
    data = load_digits().subset(100, 50, seed=0)
    noisy = data.with_noise(share, seed)
    wrong = noisy.train_labels != data.train_labels
    assert wrong.sum() <= round(share * 100)
    assert noisy.train_images is data.train_images
    assert noisy.test_labels is data.test_labels
    assert torch.equal(data.with_noise(share, seed).train_labels, noisy.train_labels)
    more = data.with_noise(1.0, seed).train_labels
    assert torch.equal(noisy.train_labels[wrong], more[wrong])


def test_all_labels_drawn_anew_are_right_as_often_as_chance_has_it():
    data = load_digits()
    right = (data.with_noise(1.0, 0).train_labels == data.train_labels).double().mean()
    assert 0.07 < right < 0.13  # 0.1 ± four standard errors of 1,437 draws


def test_methods_train_on_the_noise_and_are_judged_without_it():
    clean, noisy = (
        VisionTask.load(VisionConfig(label_noise=share, eval_batch_size=2000), CPU).holding_out(0.2)
        for share in (0.0, 0.5)
    )
    drawn = clean.data.with_noise(0.5, 0).train_labels
    assert torch.equal(noisy.data.train_labels, drawn)
    assert not torch.equal(drawn, clean.data.train_labels)
    assert torch.equal(noisy.held_out[1], clean.held_out[1])
    assert torch.equal(noisy.data.test_labels, clean.data.test_labels)
    told = torch.nn.functional.one_hot(drawn, 10) * 100.0
    assert noisy.evaluate(lambda images: told, "train")["top1"] == 100


def test_the_labels_of_an_epoch_are_the_noisy_ones():
    task = VisionTask.load(VisionConfig(label_noise=0.5, train_images=60), CPU)
    batches = task.batches(0, 60, 1)
    assert torch.equal(batches.copy(0, 0).targets.sort().values, task.data.train_labels.sort().values)
    assert not torch.equal(task.data.train_labels.sort().values, task.clean.train_labels.sort().values)


def test_experiments_with_and_without_noise_are_not_compared_and_without_it_are_what_they_were():
    none, some, same = (VisionTask.load(VisionConfig(label_noise=share), CPU).identity() for share in (0.0, 0.3, 0.3))
    assert none != some
    assert some == same
    assert "label_noise" not in none


def test_a_share_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"--label-noise must be from 0 to 1, got 1\.5"):
        VisionConfig(label_noise=1.5)
