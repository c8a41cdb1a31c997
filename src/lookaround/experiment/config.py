"""Everything that decides what an experiment computes, in one typed record."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

NormStats = Literal["average", "copy", "reestimate"]
NORM_STATS: NormStats = "average"
"""What becomes of norm layers' running statistics when weights are averaged, if nothing else is asked for."""


@dataclass(frozen=True)
class TrainConfig:
    """A comparison of methods on one data set; two equal configurations compute the same weights.

    Every method consumes the same ``branches`` augmented copies of every minibatch: Lookaround gives each branch its
    copy, the others take one gradient step on each copy in turn. `lookaround.experiment.preset` returns the
    configuration that suits a data set; change fields with `dataclasses.replace`.

    Raises:
        ValueError: for a value outside its range, naming the field.

    Example:
        >>> TrainConfig(seeds=(0, 1, 2), epochs=5).branches
        3
        >>> TrainConfig(k=0)
        Traceback (most recent call last):
            ...
        ValueError: k must be at least 1, got 0
    """

    data: str = "digits"
    """Data set: digits, cifar10, cifar100, or folder (ROOT/train/CLASS/*, ROOT/test/CLASS/*)."""
    root: str | None = None
    """Folder that holds the data; digits needs none."""
    image_size: int | None = None
    """For --data folder: resize every image to this height and width, in pixels. None: they all have one size."""
    train_images: int | None = None
    """Train on this many images, equally many of each class. None: all."""
    test_images: int | None = None
    """Test on this many images, equally many of each class. None: all."""

    model: str = "small-cnn"
    """Network: small-cnn, resnet9, resnet18, resnet50, vgg19-bn or resnext50."""
    width: int | None = None
    """Channels of the first convolution of small-cnn or resnet9. None: the network's own."""

    methods: tuple[str, ...] = ("sgd", "lookahead", "lookaround")
    """What to compare: sgd, adamw, lookahead, lookaround, sam, lookahead+sam, lookaround+sam, ema, swa, dswa, tswa, swad, dart,
    lookahead+swa, lookaround+swa, logit-ensemble, logit-ensemble+swa, lookaround+logit-ensemble, snapshot-ensemble, uniform-soup,
    greedy-soup."""
    seeds: tuple[int, ...] = (0,)
    """One run of every method for each seed; methods share initial weights, minibatches and augmented copies."""

    epochs: int = 20
    """Passes over the training images; in each, every method consumes all the augmented copies."""
    batch_size: int = 64
    """Images in a minibatch, before augmentation makes its copies."""
    branches: int = 3
    """Augmented copies of every minibatch, for all methods, and branches of Lookaround (d)."""
    augmentations: tuple[str, ...] | None = None
    """Augmentation of each branch's copy by name, or one name for all. None: those that suit the data set."""
    crop_padding: int = 0
    """Before its augmentation, pad every image by this many pixels and crop it back at random. 0: no crop."""

    lr: float = 0.1
    """Peak learning rate of SGD, alone or as the inner optimizer."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """Weight decay of SGD."""
    adamw_lr: float = 1e-3
    """Peak learning rate of AdamW."""
    adamw_weight_decay: float = 1e-2
    """Decoupled weight decay of AdamW."""
    label_smoothing: float = 0.0
    """Share of the target spread evenly over all classes in the training loss."""
    schedule: Literal["cosine", "multi-step"] = "cosine"
    """Learning rate after the warm-up: half a cosine down to 0, or a drop at each milestone."""
    milestones: tuple[int, ...] = ()
    """Epochs after which the multi-step schedule multiplies the learning rate by gamma."""
    gamma: float = 0.2
    """Factor of each drop of the multi-step schedule."""
    warmup_epochs: float = 1.0
    """Epochs in which the learning rate rises linearly from 0 to its peak."""

    k: int = 5
    """Inner steps between two averages: of each branch in Lookaround, of the trajectory in Lookahead."""
    alpha: float | Literal["adaptive"] = 0.5
    """Lookahead's weight of the fast weights in an average; 'adaptive' chooses it at each average."""
    lookaround_alpha: float = 1.0
    """Lookaround's weight of the branches' mean in an average; 1 is the published algorithm."""
    inner_state: Literal["maintain", "interpolate", "reset"] = "maintain"
    """What an average does to the inner optimizer's momentum."""
    rho: float = 0.05
    """Radius of SAM's ascent step."""
    adaptive: bool = False
    """Scale SAM's ascent step by each weight's size (ASAM)."""

    norm_stats: NormStats = NORM_STATS
    """Running statistics of averaged weights: 'average' them, 'copy' them as training left them, or 'reestimate' them
    in a pass over the training images, augmented as in training."""
    ema_decay: float = 0.999
    """Decay of ema for each step; the average follows faster while there are few points."""
    swa_start: float = 0.75
    """Part of the run after which swa, dswa and tswa begin to sample, alone or inside lookahead and lookaround."""
    swa_lr: float = 0.2
    """Constant learning rate while SWA samples, as a fraction of the peak."""
    swa_cycle: int | None = None
    """Minibatches between two samples of SWA. None: an epoch, or a fifth of a fold where that is shorter."""
    swad_every: int | None = None
    """Minibatches between two evaluations of swad on held-out images. None: an epoch."""
    swad_converge: int = 3
    """swad's window opens at an evaluation whose loss none of the next swad_converge - 1 falls below."""
    swad_tolerance: int = 6
    """Evaluations above the limit after which swad's window closes."""
    swad_rate: float = 1.3
    """swad's limit, as a multiple of the mean loss when the window opens."""
    hold_out: float = 0.05
    """Part of the training images by which swad and greedy-soup choose. When one of them is compared, no method trains
    on these images; otherwise all do."""
    dart_start: float = 0.5
    """Part of the run in which dart trains one branch on every copy."""
    dart_k: int | None = None
    """Inner steps between two averages of dart. None: an epoch."""
    soup_start: float = 0.5
    """Part of the run in which the members of uniform-soup and greedy-soup are one model, trained on every copy."""
    snapshots: int = 4
    """Cosine cycles, and so members, of snapshot-ensemble."""

    device: str = "auto"
    """cpu, cuda, cuda:N …; auto takes CUDA when there is one."""
    threads: int | None = None
    """CPU threads of an operation, on which the last bits of a result can depend. None: as many as torch takes."""
    amp: bool = False
    """Forward passes in bfloat16 where autocast allows it; weights stay float32."""
    compile: bool = False
    """Compile the network with torch.compile."""
    channels_last: bool = False
    """Keep weights and images in the channels-last memory format."""

    eval_batch_size: int = 500
    """Images in a batch of an evaluation."""
    eval_train_loss: bool = False
    """At each epoch's end, also evaluate the loss of the averaged weights on the training images, not augmented."""
    checkpoint_every: int | None = None
    """Minibatches between checkpoints, besides the one at each epoch's end. None: no others."""

    def __post_init__(self) -> None:
        for name, (least, most) in _RANGES.items():
            _check_range(name, getattr(self, name), least, most)
        _check_distinct("methods", self.methods)
        _check_distinct("seeds", self.seeds)
        if self.augmentations is not None and len(self.augmentations) not in (1, self.branches):
            got = " ".join(self.augmentations) or "none"
            raise ValueError(f"augmentations must be one name or one a branch ({self.branches}), got {got}")
        _check_milestones(self)

    def as_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


_RANGES: dict[str, tuple[float, float]] = {
    "image_size": (1, math.inf),
    "train_images": (1, math.inf),
    "test_images": (1, math.inf),
    "width": (1, math.inf),
    "epochs": (1, math.inf),
    "batch_size": (1, math.inf),
    "branches": (1, math.inf),
    "crop_padding": (0, math.inf),
    "lr": (0, math.inf),
    "momentum": (0, 1),
    "weight_decay": (0, math.inf),
    "adamw_lr": (0, math.inf),
    "adamw_weight_decay": (0, math.inf),
    "label_smoothing": (0, 1),
    "gamma": (0, 1),
    "warmup_epochs": (0, math.inf),
    "k": (1, math.inf),
    "alpha": (0, 1),
    "lookaround_alpha": (0, 1),
    "rho": (0, math.inf),
    "ema_decay": (0, 1),
    "swa_start": (0, 1),
    "swa_lr": (0, math.inf),
    "swa_cycle": (1, math.inf),
    "swad_every": (1, math.inf),
    "swad_converge": (1, math.inf),
    "swad_tolerance": (1, math.inf),
    "swad_rate": (1, math.inf),
    "hold_out": (0, 1),
    "dart_start": (0, 1),
    "dart_k": (1, math.inf),
    "soup_start": (0, 1),
    "snapshots": (1, math.inf),
    "threads": (1, math.inf),
    "eval_batch_size": (1, math.inf),
    "checkpoint_every": (1, math.inf),
}


def _check_range(name: str, value: float | str | None, least: float, most: float) -> None:
    if value is None or isinstance(value, str):
        return
    if not (least <= value <= most and math.isfinite(value)):
        allowed = f"at least {least}" if most == math.inf else f"from {least} to {most}"
        raise ValueError(f"{name} must be {allowed}, got {value}")


def _check_distinct(name: str, values: tuple[str, ...] | tuple[int, ...]) -> None:
    if not values or len(set(values)) < len(values):
        raise ValueError(f"{name} must be distinct and at least one, got {' '.join(map(str, values)) or 'none'}")


def _check_milestones(config: TrainConfig) -> None:
    if config.schedule != "multi-step":
        return
    inside = all(0 < milestone < config.epochs for milestone in config.milestones)
    if not config.milestones or not inside or list(config.milestones) != sorted(set(config.milestones)):
        got = " ".join(map(str, config.milestones)) or "none"
        raise ValueError(f"milestones must rise and lie between 0 and epochs = {config.epochs}, got {got}")


def difference(saved: Mapping[str, Any], config: TrainConfig) -> str | None:
    """The first field in which a configuration's saved JSON and ``config`` differ, in words; None if they are equal.

    Example:
        >>> difference(TrainConfig(lr=0.1).as_json(), TrainConfig(lr=0.2))
        'lr was 0.1 and is now 0.2'
    """
    now = config.as_json()
    for field in fields(config):
        was = saved.get(field.name)
        if was != now[field.name]:
            return f"{field.name} was {was} and is now {now[field.name]}"
    return None
