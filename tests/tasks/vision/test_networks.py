from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from lookaround.errors import UsageError
from lookaround.tasks.vision import load_network
from lookaround.tasks.vision.networks import Architecture, save_network


@pytest.fixture
def architecture(digits):
    return Architecture.for_data("small-cnn", 4, digits)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_saved_network_predicts_the_same(tmp_path, digits, architecture, layout):
    model = architecture.build().to(memory_format=layout)
    model(digits.normalize(digits.train_images))  # moves the running statistics
    save_network(tmp_path / "m.safetensors", model, architecture, {"method": "sgd"})
    loaded, described = load_network(tmp_path / "m.safetensors")
    images = digits.normalize(digits.test_images)
    with torch.inference_mode():
        assert torch.equal(loaded(images), model.eval().to(memory_format=torch.contiguous_format)(images))
    assert described == architecture
    assert described.classes == digits.classes


def test_a_file_of_something_else_is_named(tmp_path, architecture):
    path = tmp_path / "m.safetensors"
    with pytest.raises(UsageError, match=r"m\.safetensors is no network saved by lookaround train"):
        load_network(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(UsageError, match=r"is no network saved by .*: its metadata have no lookaround\.architecture$"):
        load_network(path)
    save_network(path, torch.nn.Linear(2, 2), architecture, {})
    with pytest.raises(UsageError, match="is no network saved"):
        load_network(path)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(UsageError, match="is no network saved"):
        load_network(path)


def test_images_that_are_not_square_are_refused(digits):
    from dataclasses import replace

    wide = replace(digits, train_images=digits.train_images.repeat(1, 1, 1, 2))
    with pytest.raises(UsageError, match="take square images, digits has 16×8"):
        Architecture.for_data("small-cnn", None, wide)
