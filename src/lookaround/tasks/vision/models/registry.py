"""Networks by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from lookaround.tasks.vision.models import small, vision

_SMALL: dict[str, tuple[Callable[[int, int, int], nn.Module], int, int]] = {
    "small-cnn": (small.small_cnn, 16, 4),
    "resnet9": (small.resnet9, 64, 8),
}
_VISION: dict[str, tuple[Callable[[str, int, int, int], nn.Module], str, int]] = {
    "resnet18": (vision.residual_network, "resnet18", 1),
    "resnet50": (vision.residual_network, "resnet50", 1),
    "vgg19-bn": (vision.vgg_network, "vgg19_bn", 32),
    "resnext50": (vision.residual_network, "resnext50_32x4d", 1),
}
MODELS = (*_SMALL, *_VISION)


def build_model(
    name: str, *, classes: int, channels: int = 3, image_size: int = 32, width: int | None = None
) -> nn.Module:
    """A randomly initialized network for images of shape ``(N, channels, image_size, image_size)``.

    The initial weights come from torch's global generator, so ``torch.manual_seed`` before the call fixes them.

    Args:
        name: ``small-cnn`` (for digits), ``resnet9``, or torchvision's ``resnet18``, ``resnet50``, ``vgg19-bn`` and
            ``resnext50`` (32x4d); torchvision's get the 3x3 stem, or VGG the small head, for images up to 64 pixels.
        classes: number of outputs (logits).
        channels: of the images.
        image_size: height and width of the images, in pixels.
        width: channels of the first convolution, for ``small-cnn`` (default 16) and ``resnet9`` (default 64) only.

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
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; choose one of {', '.join(MODELS)}")
    smallest = _SMALL[name][2] if name in _SMALL else _VISION[name][2]
    for what, value, least in (
        ("classes", classes, 1),
        ("channels", channels, 1),
        ("image_size", image_size, smallest),
    ):
        if value < least:
            raise ValueError(f"{name} takes {what} of at least {least}, got {value}")
    if name in _SMALL:
        build, default, _ = _SMALL[name]
        width = default if width is None else width
        if width < 1:
            raise ValueError(f"{name} takes a width of at least 1, got {width}")
        return build(classes, channels, width)
    if width is not None:
        raise ValueError(f"{name} has a fixed width, got width={width}; only {', '.join(_SMALL)} take one")
    construct, builder, _ = _VISION[name]
    return construct(builder, classes, channels, image_size)
