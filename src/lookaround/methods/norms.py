"""What becomes of norm layers' running statistics when weights are averaged: one choice for every method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch

from lookaround.averaging import update_norm_stats
from lookaround.methods.base import Setup


def buffer_policy(setup: Setup) -> Mapping[str, Literal["average", "copy"]] | None:
    """The ``buffers`` of an average that follows the chosen ``norm_stats``."""
    has_norms = any("running_" in name for name, _ in setup.model.named_buffers())
    return {"*running_*": "copy"} if has_norms and setup.norm_stats == "copy" else None


def reestimate(setup: Setup) -> None:
    """If so chosen, gives the model the statistics of what it is trained on, under its weights and in training's precision.

    That is one pass over the training data, shuffled, in minibatches of training's size, each in the copy of another branch in
    turn. Data without augmentation would not do: their statistics are others, and cost accuracy. Several processes, which all have
    the same weights then, share the minibatches out, and the statistics are pooled over them.
    """
    if setup.norm_stats != "reestimate":
        return
    batches, rank, size = setup.batches, *_place()
    copies = (batches.copy(index, index % batches.branches).inputs for index in range(rank, batches.per_epoch, size))
    with setup.precision():
        update_norm_stats(setup.model, copies)


def _place() -> tuple[int, int]:
    """Which process of how many this one is."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


@contextmanager
def reestimated(setup: Setup) -> Iterator[None]:
    """Inside, the model has the statistics of `reestimate`; afterwards its buffers are what they were."""
    if setup.norm_stats != "reestimate":
        yield
        return
    buffers = list(setup.model.buffers())
    before = [buffer.clone() for buffer in buffers]
    try:
        reestimate(setup)
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)
