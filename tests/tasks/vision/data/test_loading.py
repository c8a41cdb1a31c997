from __future__ import annotations

import hashlib

import pytest
import torch

from lookaround.tasks.vision.data import DATA_SETS, DataError, load_data


def test_digits_are_scikit_learns_images_scaled_to_bytes():
    from sklearn.datasets import load_digits

    data = load_data("digits")
    assert data.train_images.shape == (1437, 1, 8, 8)
    assert data.test_images.shape == (360, 1, 8, 8)
    assert data.classes == tuple("0123456789")
    bunch = load_digits()
    expected = {
        (tuple(image.round().astype(int)), label) for image, label in zip(bunch.data, bunch.target, strict=True)
    }
    images = torch.cat([data.train_images, data.test_images])
    labels = torch.cat([data.train_labels, data.test_labels])
    sixteenths = (images.double() * 16 / 255).round().int().flatten(1)
    assert {
        (tuple(image), label) for image, label in zip(sixteenths.tolist(), labels.tolist(), strict=True)
    } == expected
    assert set(images.unique().tolist()) == {round(value * 255 / 16) for value in range(17)}


def test_the_digits_split_is_stratified_and_always_the_same():
    first, second = load_data("digits"), load_data("digits")
    shares = first.test_labels.bincount() / torch.cat([first.train_labels, first.test_labels]).bincount()
    assert (shares - 0.2).abs().max() < 0.01
    assert torch.equal(first.test_images, second.test_images)
    content = first.test_images.numpy().tobytes() + first.test_labels.numpy().tobytes()
    assert hashlib.sha256(content).hexdigest() == DIGITS_TEST_PART


# Written down once: a changed split would make every number reported on digits incomparable.
DIGITS_TEST_PART = "54463c0f0448962006c207077b2e5de27dfc7d11bc920e1a96cc81fbafa1d605"


@pytest.mark.parametrize("name", ["mnist", "", "Digits"])
def test_unknown_name(name):
    with pytest.raises(DataError, match=f"unknown data set '{name}'; choose one of {', '.join(DATA_SETS)}"):
        load_data(name)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "folder"])
def test_root_is_needed_and_must_exist(name, tmp_path):
    with pytest.raises(DataError, match=f"{name} needs --root"):
        load_data(name)
    with pytest.raises(DataError, match=f"{name}: there is no folder {tmp_path / 'nowhere'}"):
        load_data(name, tmp_path / "nowhere")


def test_size_is_for_folders():
    with pytest.raises(DataError, match="digits is always read into memory as it is"):
        load_data("digits", size=16)


def test_every_error_is_one_line(tmp_path):
    for name in (*DATA_SETS[1:], "unknown"):
        with pytest.raises(DataError) as caught:
            load_data(name, tmp_path)
        assert "\n" not in str(caught.value)
        assert name == "unknown" or str(tmp_path) in str(caught.value)
