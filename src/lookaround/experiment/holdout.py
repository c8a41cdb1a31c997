"""Training images set aside for the methods that choose by them, so that none of them ever looks at the test set."""

from __future__ import annotations

from torch import Tensor

from lookaround.experiment.config import TrainConfig
from lookaround.tasks.vision.data import ImageData

CHOOSING = ("swad", "greedy-soup")
"""Methods that choose by held-out images."""
# Every run of an experiment holds out the same images.
_SEED = 0


def hold_out(data: ImageData, config: TrainConfig, method: str) -> tuple[ImageData, tuple[Tensor, Tensor] | None]:
    """Splits off held-out images if ``method``, or one it is compared with, chooses by them.

    Every method of a comparison then trains without them, so that the budget stays equal.

    Returns:
        What to train on, and the held-out images (uint8 ``(N, C, H, W)``) and labels; None where no method asks.

    Raises:
        ValueError: for fewer training images than it takes.
    """
    if not {method, *config.methods} & set(CHOOSING):
        return data, None
    rest, images, labels = data.hold_out(config.hold_out, _SEED)
    return rest, (images, labels)
