"""A saved network takes images as they are, through the arithmetic of its training."""

from __future__ import annotations

import pytest
import torch

from lookaround.tasks.vision import VisionConfig, VisionTask, load_network


def test_a_loaded_network_predicts_what_the_trained_one_did(tmp_path):
    task = VisionTask.load(VisionConfig(width=4), torch.device("cpu"))
    model = task.network().eval()
    task.save(tmp_path / "model.safetensors", model, {})
    loaded, about = load_network(tmp_path / "model.safetensors")
    images = task.data.test_images[:20]
    assert torch.equal(about.prepare(images), task.prepare(images))
    assert torch.equal(loaded(about.prepare(images)), model(task.prepare(images)))
    for wrong in (images.float(), images[:, :, :7], images[:, :, :, :7], images.expand(-1, 3, -1, -1)):
        with pytest.raises(ValueError, match=r"the network takes uint8 images of shape \(N, 1, 8, 8\), got torch"):
            about.prepare(wrong)
