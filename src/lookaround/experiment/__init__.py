"""Comparisons of methods on real images at equal budget: configuration, training, records, table and curves."""

from lookaround.errors import DivergedError, InterruptedRunError, UsageError
from lookaround.experiment.comparison import train
from lookaround.experiment.config import TrainConfig
from lookaround.experiment.display import Display, display_for
from lookaround.experiment.methods import METHODS
from lookaround.experiment.networks import load_network
from lookaround.experiment.presets import preset
from lookaround.experiment.report import Comparison

__all__ = [
    "METHODS",
    "Comparison",
    "Display",
    "DivergedError",
    "InterruptedRunError",
    "TrainConfig",
    "UsageError",
    "display_for",
    "load_network",
    "preset",
    "train",
]
