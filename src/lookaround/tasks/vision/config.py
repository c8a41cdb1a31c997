"""Everything that decides what the vision task is, in one typed record."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from lookaround.tasks.base import Copies
from lookaround.tasks.checks import check_ranges


@dataclass(frozen=True)
class VisionConfig:
    """Classification of images. `lookaround.tasks.vision.preset` gives what suits a data set.

    Raises:
        ValueError: for a value outside its range, naming the option.

    Example:
        >>> from lookaround.tasks.vision import VisionConfig
        >>> VisionConfig(branches=2).data
        'digits'
        >>> VisionConfig(branches=0)
        Traceback (most recent call last):
            ...
        ValueError: --branches must be at least 1, got 0
    """

    data: str = "digits"
    """Data set: digits, cifar10, cifar100, or folder (ROOT/train/CLASS/*, ROOT/test/CLASS/*)."""
    root: str | None = field(default=None, metadata={"affects": False})
    """Folder that holds the data; digits needs none."""
    image_size: int | None = None
    """For --data folder: resize every image to this height and width, in pixels. None: they all have one size."""
    train_images: int | None = None
    """Train on this many images, equally many of each class. None: all."""
    test_images: int | None = None
    """Test on this many images, equally many of each class. None: all."""
    model: str = "small-cnn"
    """Network: small-cnn, resnet9, airbench, toy-cnn, resnet18, resnet50, resnet101, resnet152, vgg16, vgg19-bn, resnext50,
    densenet161, vit-b-16, preresnet110, preresnet164, wrn-28-10, or timm:NAME."""
    width: int | None = None
    """Channels of the first convolution of small-cnn, resnet9, airbench or toy-cnn. None: the network's own."""
    init_from: str | None = None
    """Weights to begin with: a safetensors file or a run's folder of the same network, torchvision:NAME or timm:NAME where
    their weights are on the machine. The last layer is new if it told other classes apart."""
    body_rate: float = 1.0
    """With --init-from: learning rate of all but the last layer, as a multiple of the method's."""
    frozen: tuple[str, ...] = ()
    """With --init-from: stages of the network that stay as they are, such as conv1 bn1 layer1."""
    branches: int = 3
    """Augmented copies of every minibatch, d, all of which every method consumes: Lookaround one a branch."""
    copies: Copies = "independent"
    """Whose copies they are: each augmentation draws from its own shuffled order of the images, or all d are copies of
    one minibatch (Lookaround's Algorithm 1)."""
    augmentations: tuple[str, ...] | None = None
    """Augmentation of each branch's copy by name, or one name for all. None: those that suit the data set."""
    crop_padding: int = 0
    """Before its augmentation, pad every image by this many pixels and crop it back at random. 0: no crop."""
    label_smoothing: float = 0.0
    """Share of the target spread evenly over all classes in the training loss."""
    label_noise: float = 0.0
    """Share of the images trained on whose labels are replaced by ones drawn from all classes, the same whatever the run's seed.
    Held-out and test labels stay right."""
    channels_last: bool = False
    """Keep weights and images in the channels-last memory format."""
    stream: bool = field(default=False, metadata={"affects": False})
    """For --data folder: leave the images on the disk and read them as they are needed, for data that memory cannot hold.
    The minibatches are the same."""
    workers: int | None = field(default=None, metadata={"affects": False})
    """With --stream: processes that decode ahead; 0: none but the one that trains. None: one a core, at most 8."""
    eval_batch_size: int = field(default=500, metadata={"affects": False})
    """Images in a batch of an evaluation."""

    def __post_init__(self) -> None:
        check_ranges(self, _RANGES)
        if self.init_from is None and (self.frozen or self.body_rate != 1.0):
            raise ValueError("--frozen and --body-rate are for weights from --init-from; name those too")
        if self.workers is not None and not self.stream:
            raise ValueError(
                f"--workers {self.workers} read images ahead with --stream alone; add it, or leave them out"
            )
        if self.augmentations is not None and len(self.augmentations) not in (1, self.branches):
            got = " ".join(self.augmentations) or "none"
            raise ValueError(f"--augmentations must be one name or one a branch ({self.branches}), got {got}")

    def readers(self) -> int | None:
        """Processes that read images ahead, or None where they are held in memory."""
        if not self.stream:
            return None
        return min(8, os.cpu_count() or 1) if self.workers is None else self.workers

    def suits(self) -> dict[str, Any]:
        """What suits the data among the experiment's own options.

        20 epochs on digits, 200 on photographs as in Lookaround's experiments. The operations on digits are too small to be
        shared among threads: a second one gains nothing, and has to be waited for on a busy machine.
        """
        return {"epochs": 20, "threads": 1} if self.data == "digits" else {"epochs": 200}


_RANGES = {
    "image_size": (1, None),
    "train_images": (1, None),
    "test_images": (1, None),
    "width": (1, None),
    "body_rate": (0, None),
    "branches": (1, None),
    "crop_padding": (0, None),
    "label_smoothing": (0, 1),
    "label_noise": (0, 1),
    "workers": (0, None),
    "eval_batch_size": (1, None),
}
