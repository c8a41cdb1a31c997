"""Classification of images: the task of most of the papers' experiments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lookaround.tasks.base import Batch, Metric, Predict, Split, Task
from lookaround.tasks.vision.batches import ImageBatches, branch_augmentations, prepare
from lookaround.tasks.vision.config import VisionConfig
from lookaround.tasks.vision.data import ImageData, Images, load_data
from lookaround.tasks.vision.data.images import digest
from lookaround.tasks.vision.evaluation import evaluate
from lookaround.tasks.vision.finetuning import Start, freeze, groups, load_start
from lookaround.tasks.vision.networks import Architecture, save_network
from lookaround.tasks.vision.presets import defaults

# Which images make a subset, or are held out, does not change with a run's seed: all runs train and test on the same ones.
SUBSET_SEED = 0
_HOLD_OUT_SEED = 0
_NOISE_SEED = 0
_TOP5 = Metric("top5", "top-5 %", lower=False)
_METRICS = (
    Metric("top1", "top-1 %", lower=False),
    _TOP5,
    Metric("nll", "NLL", lower=True, digits=4, loss=True),
    Metric("ece", "ECE %", lower=True),
)
# What decides the arithmetic of a run but not what its numbers mean, or where things lie.
_NOT_IDENTITY = (
    *("root", "channels_last", "eval_batch_size", "stream", "workers"),
    *("train_images", "test_images", "label_noise"),  # the digest of images and labels tells them apart
)


class VisionTask(Task):
    """See `lookaround.tasks.base.Task`.

    Args:
        config: of the task.
        data: images on the training device.
        held_out: images and labels that were set aside, or None.
        start: weights to begin with, or None for those that are drawn.

    Raises:
        ValueError: for augmentations, network or images that do not go together.
    """

    def __init__(
        self,
        config: VisionConfig,
        data: ImageData,
        held_out: tuple[Images, Tensor] | None = None,
        start: Start | None = None,
    ) -> None:
        branch_augmentations(config, config.branches)
        self.config, self.held_out, self.start = config, held_out, start
        # Noise comes last, after images are held out, whose labels are right.
        self.clean, self.data = data, data.with_noise(config.label_noise, _NOISE_SEED)
        self.name = data.name
        self.branches = config.branches
        self.device = data.train_images.device
        self.architecture = Architecture.for_data(config.model, config.width, data)
        self.metrics = [metric for metric in _METRICS if metric is not _TOP5 or len(data.classes) > 5]
        self.defaults = defaults(config)

    @classmethod
    def load(cls, config: VisionConfig, device: torch.device) -> VisionTask:
        """Loads and checks everything that the configuration names.

        Raises:
            ValueError: in one line, for what cannot be used.
        """
        counts = (config.train_images, config.test_images)
        size, workers = config.image_size, config.readers()
        data = load_data(config.data, config.root, size=size, counts=counts, seed=SUBSET_SEED, workers=workers)
        task = cls(config, data)
        with torch.device("meta"):
            task.architecture.build()
        start = None if config.init_from is None else load_start(config.init_from)
        task = cls(config, data.to(device), start=start)
        if start is not None:
            task.network()
        return task

    def identity(self) -> dict[str, Any]:
        settings = {name: value for name, value in asdict(self.config).items() if name not in _NOT_IDENTITY}
        augmentations = [branch.name for branch in branch_augmentations(self.config, self.branches)]
        counts = {part: len(labels) for part, labels in self._labels().items()}
        data = self.data
        return {
            "task": "vision",
            **settings,
            "augmentations": augmentations,
            "images": counts,
            "digest": digest([(data.train_images, data.train_labels), (data.test_images, data.test_labels)]),
            "init_from": None if self.start is None else self.start.digest,
        }

    def _labels(self) -> dict[str, Tensor]:
        held_out = () if self.held_out is None else self.held_out[1]
        return {"train": self.data.train_labels, "held-out": torch.as_tensor(held_out), "test": self.data.test_labels}

    def network(self) -> nn.Module:
        layout = torch.channels_last if self.config.channels_last else torch.preserve_format
        model = self.architecture.build()
        if self.start is not None:
            self.start.put(model, self.data.classes)
            freeze(model, self.config.frozen)
        model = model.to(self.device, memory_format=layout)  # type: ignore[call-overload]
        assert isinstance(model, nn.Module)
        return model

    def parameters(self, model: nn.Module) -> list[dict[str, Any]]:
        return super().parameters(model) if self.start is None else groups(model, self.config.body_rate)

    def batches(self, seed: int, batch: int, branches: int) -> ImageBatches:
        return ImageBatches(self.data, self.config, seed, batch, branches)

    def prepare(self, images: Tensor) -> Tensor:
        """Normalized float32 images in the memory format that the network is trained with, from uint8 ones."""
        return prepare(images, self.data, self.config)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        logits = model(batch.inputs).float()
        return F.cross_entropy(logits, batch.targets, label_smoothing=self.config.label_smoothing)

    def evaluate(self, predict: Predict, split: Split) -> dict[str, float]:
        images, labels = self._part(split)
        size = self.config.eval_batch_size
        scores = asdict(evaluate(predict, images, labels, prepare=self.prepare, batch_size=size))
        return {metric.name: scores[metric.name] for metric in self.metrics}

    def _part(self, split: Split) -> tuple[Images, Tensor]:
        if split == "train":
            return self.data.train_images, self.data.train_labels
        if split == "test":
            return self.data.test_images, self.data.test_labels
        if self.held_out is None:
            raise ValueError("no training images are held out to evaluate on; pass --hold-out")
        return self.held_out

    def holding_out(self, fraction: float) -> VisionTask:
        rest, images, labels = self.clean.hold_out(fraction, _HOLD_OUT_SEED)
        return VisionTask(self.config, rest, (images, labels), self.start)

    def save(self, path: Path, model: nn.Module, notes: Mapping[str, str]) -> None:
        save_network(path, model, self.architecture, {**notes, "data": self.name})
