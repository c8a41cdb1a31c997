"""Networks to train, by name."""

from lookaround.tasks.vision.models.registry import MODELS, build_model

__all__ = ["MODELS", "build_model"]
