"""Networks by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from lookaround.tasks.vision.models import small, vision
from lookaround.tasks.vision.models.preactivated import preactivated_network, wide_network

_SMALL: dict[str, tuple[Callable[[int, int, int], nn.Module], int, int]] = {
    "small-cnn": (small.small_cnn, 16, 4),
    "resnet9": (small.resnet9, 64, 8),
    "toy-cnn": (small.toy_cnn, 32, 4),
    "airbench": (small.airbench, 64, 9),
}
_VISION: dict[str, tuple[Callable[[str, int, int, int], nn.Module], str, int]] = {
    "resnet18": (vision.residual_network, "resnet18", 1),
    "resnet50": (vision.residual_network, "resnet50", 1),
    "resnet101": (vision.residual_network, "resnet101", 1),
    "resnet152": (vision.residual_network, "resnet152", 1),
    "vgg16": (vision.vgg_network, "vgg16", 32),
    "vgg19-bn": (vision.vgg_network, "vgg19_bn", 32),
    "resnext50": (vision.residual_network, "resnext50_32x4d", 1),
    "densenet161": (vision.dense_network, "densenet161", 8),
    "vit-b-16": (vision.patch_network, "vit_b_16", 16),
}
_OWN: dict[str, Callable[[int, int], nn.Module]] = {
    "preresnet110": partial(preactivated_network, 110),
    "preresnet164": partial(preactivated_network, 164),
    "wrn-28-10": partial(wide_network, 28, 10),
}
_TIMM = "timm:"
MODELS = (*_SMALL, *_VISION, *_OWN)


def build_model(
    name: str, *, classes: int, channels: int = 3, image_size: int = 32, width: int | None = None
) -> nn.Module:
    """A randomly initialized network for images of shape ``(N, channels, image_size, image_size)``.

    The initial weights come from torch's global generator, so ``torch.manual_seed`` before the call fixes them.

    Args:
        name: ``small-cnn`` (for digits), ``resnet9``, ``airbench``, ``toy-cnn``; torchvision's ``resnet18``, ``resnet50``,
            ``resnet101``, ``resnet152``, ``vgg16``, ``vgg19-bn``, ``resnext50`` (32x4d), ``densenet161`` and ``vit-b-16``, of which
            those with convolutions get the 3x3 stem, or VGG the small head, for images up to 64 pixels; ``preresnet110``,
            ``preresnet164`` and ``wrn-28-10`` for small images; or ``timm:NAME`` for any of timm's, where that is installed.
        classes: number of outputs (logits).
        channels: of the images.
        image_size: height and width of the images, in pixels.
        width: channels of the first convolution, for ``small-cnn`` (default 16), ``resnet9`` and ``airbench`` (64) and ``toy-cnn``
            (32) only.

    Raises:
        ValueError: for an unknown name, a number below 1, a width for a network that has a fixed one, or an image too
            small for the network.

    Example:
        >>> from lookaround.tasks.vision.models import build_model
        >>> import torch
        >>> model = build_model("resnet9", classes=10, width=8)
        >>> tuple(model(torch.zeros(2, 3, 32, 32)).shape)
        (2, 10)
    """
    _check(name, classes=classes, channels=channels, image_size=image_size)
    if name in _SMALL:
        build, default, _ = _SMALL[name]
        return build(classes, channels, _width(name, default if width is None else width))
    if width is not None:
        raise ValueError(f"{name} has a fixed width, got width={width}; only {', '.join(_SMALL)} take one")
    if name.startswith(_TIMM):
        return vision.timm_network(name.removeprefix(_TIMM), classes, channels, image_size)
    if name in _OWN:
        return _OWN[name](classes, channels)
    construct, builder, _ = _VISION[name]
    return construct(builder, classes, channels, image_size)


def _check(name: str, **values: int) -> None:
    if name not in MODELS and not name.startswith(_TIMM):
        raise ValueError(f"unknown model {name!r}; choose one of {', '.join(MODELS)}, or timm:NAME")
    known = _SMALL.get(name) or _VISION.get(name) or (None, None, 4 if name in _OWN else 1)
    for what, value in values.items():
        least = known[2] if what == "image_size" else 1
        if value < least:
            raise ValueError(f"{name} takes {what} of at least {least}, got {value}")


def _width(name: str, width: int) -> int:
    if width < 1:
        raise ValueError(f"{name} takes a width of at least 1, got {width}")
    return width
