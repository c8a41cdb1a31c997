"""Configurations that suit a data set, and the settings of methods that suit it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lookaround.tasks.base import Defaults
from lookaround.tasks.vision.config import VisionConfig

_SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}


def digits() -> VisionConfig:
    """The embedded data set and a small network: a comparison takes minutes on a laptop."""
    return VisionConfig()


def cifar10() -> VisionConfig:
    """CIFAR-10 as in Lookaround's experiments (Zhang et al. 2023, section 4.1 and Appendix C.1.1)."""
    return VisionConfig(data="cifar10", root="data", model="resnet18", crop_padding=4)


def cifar100() -> VisionConfig:
    """CIFAR-100 as in Lookaround's experiments, but for the common random rotation."""
    return VisionConfig(data="cifar100", root="data", model="resnet18", crop_padding=4)


def folder() -> VisionConfig:
    """Any image folder, trained like CIFAR-10."""
    return VisionConfig(data="folder", root="data", model="resnet18", crop_padding=4)


PRESETS: dict[str, Callable[[], VisionConfig]] = {
    "digits": digits,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "folder": folder,
}


def preset(data: str) -> VisionConfig:
    """The configuration that suits a data set, for `dataclasses.replace` to change.

    Raises:
        ValueError: for a data set that has none.

    Example:
        >>> from lookaround.tasks.vision import preset
        >>> preset("cifar10").model
        'resnet18'
    """
    if data not in PRESETS:
        raise ValueError(f"unknown data set {data!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[data]()


def defaults(config: VisionConfig) -> Defaults:
    """Settings of methods that suit a data set.

    On digits the learning rate is the one of 0.02, 0.05, 0.1 and 0.2 with which SGD had the lowest NLL on a fifth of the training
    images, held out (20 epochs, three seeds, shared copies). On photographs all are those of Lookaround's experiments.
    """
    digits = config.data == "digits"
    adamw = {"lr": 1e-3, "weight_decay": 1e-2 if digits else 0.05}
    schedule: dict[str, Any] = {"schedule": "cosine", "warmup": 1.0}
    if config.data == "cifar100":
        schedule |= {"schedule": "multi-step", "milestones": (0.3, 0.6, 0.8), "gamma": 0.2}
    return Defaults("sgd", 64 if digits else 128, {"sgd": dict(_SGD), "adamw": adamw}, schedule)
