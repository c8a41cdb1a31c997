"""Classification of images."""

from lookaround.tasks.vision.config import VisionConfig
from lookaround.tasks.vision.networks import load_network
from lookaround.tasks.vision.presets import preset
from lookaround.tasks.vision.task import VisionTask

__all__ = ["VisionConfig", "VisionTask", "load_network", "preset"]
