"""What becomes of norm layers' running statistics when weights are averaged: one choice for every method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch

from lookaround.averaging import update_norm_stats
from lookaround.experiment.methods.base import Setting


def buffer_policy(setting: Setting) -> Mapping[str, Literal["average", "copy"]] | None:
    """The ``buffers`` of an average that follows the configured ``norm_stats``."""
    has_norms = any("running_" in name for name, _ in setting.model.named_buffers())
    return {"*running_*": "copy"} if has_norms and setting.config.norm_stats == "copy" else None


def reestimate(setting: Setting) -> None:
    """If so configured, gives the model the statistics of what it is trained on, under its weights and in training's precision.

    That is one pass over the training images, shuffled, in minibatches of training's size, each in the copy of another
    branch in turn. Images without augmentation would not do: their statistics are others, and cost accuracy.
    """
    if setting.config.norm_stats != "reestimate":
        return
    batches = setting.batches
    copies = (minibatch.copy(minibatch.index % minibatch.branches) for minibatch in batches.epoch(0))
    with torch.autocast(batches.data.train_images.device.type, torch.bfloat16, enabled=setting.config.amp):
        update_norm_stats(setting.model, copies)


@contextmanager
def reestimated(setting: Setting) -> Iterator[None]:
    """Inside, the model has the statistics of `reestimate`; afterwards its buffers are what they were."""
    buffers = list(setting.model.buffers())
    before = [buffer.clone() for buffer in buffers]
    try:
        reestimate(setting)
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)
