"""torchvision's networks, with the stem and the head that small images need."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

SMALL_IMAGE = 64


def residual_network(builder: str, classes: int, channels: int, image_size: int) -> nn.Module:
    """torchvision's ``builder`` (a ResNet or ResNeXt) without weights.

    Images of at most 64 pixels get a 3x3 stem of stride 1 and no max-pool, as is the custom for CIFAR; larger ones
    keep torchvision's 7x7 stem of stride 2.
    """
    from torchvision import models

    network: Any = getattr(models, builder)(weights=None, num_classes=classes)
    width = network.conv1.out_channels
    if image_size <= SMALL_IMAGE:
        network.conv1 = _convolution(nn.Conv2d(channels, width, 3, padding=1, bias=False))
        network.maxpool = nn.Identity()
    elif channels != 3:
        network.conv1 = _convolution(nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False))
    assert isinstance(network, nn.Module)
    return network


def vgg_network(builder: str, classes: int, channels: int, image_size: int) -> nn.Module:
    """torchvision's ``builder`` (a VGG with batch norm) without weights.

    Images of at most 64 pixels get global average pooling and one linear layer in place of the 120-million-parameter
    classifier, as is the custom for CIFAR.
    """
    from torchvision import models

    if image_size > SMALL_IMAGE:
        network: Any = getattr(models, builder)(weights=None, num_classes=classes)
    else:
        with torch.device("meta"):  # the classifier that is thrown away is never allocated nor drawn
            network = getattr(models, builder)(weights=None)
        network.avgpool = nn.AdaptiveAvgPool2d(1)
        network.classifier = nn.Linear(512, classes)
        network.features.to_empty(device=torch.get_default_device()).apply(_initialize)
    if channels != 3:
        network.features[0] = _convolution(nn.Conv2d(channels, 64, 3, padding=1))
    assert isinstance(network, nn.Module)
    return network


def dense_network(builder: str, classes: int, channels: int, image_size: int) -> nn.Module:
    """torchvision's ``builder`` (a DenseNet) without weights.

    Images of at most 64 pixels get a 3x3 stem of stride 1 and no pooling after it.
    """
    from torchvision import models

    network: Any = getattr(models, builder)(weights=None, num_classes=classes)
    width = network.features.conv0.out_channels
    if image_size <= SMALL_IMAGE:
        network.features.conv0 = _convolution(nn.Conv2d(channels, width, 3, padding=1, bias=False))
        network.features.pool0 = nn.Identity()
    elif channels != 3:
        network.features.conv0 = _convolution(nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False))
    assert isinstance(network, nn.Module)
    return network


def patch_network(builder: str, classes: int, channels: int, image_size: int) -> nn.Module:
    """torchvision's ``builder`` (a vision Transformer) without weights, on images whose sides are multiples of its patches.

    Raises:
        ValueError: for images of another size, or not of three channels.
    """
    from torchvision import models

    if channels != 3 or image_size % 16:
        raise ValueError(
            f"{builder} takes images of 3 channels and a multiple of 16 pixels, got {channels} and {image_size}"
        )
    network = getattr(models, builder)(weights=None, num_classes=classes, image_size=image_size)
    assert isinstance(network, nn.Module)
    return network


def timm_network(name: str, classes: int, channels: int, image_size: int) -> nn.Module:
    """timm's model of that name, without weights.

    Raises:
        ValueError: without timm, for a name that it does not have, or what the model refuses.
    """
    try:
        import timm
    except ImportError as error:
        raise ValueError(f"timm:{name} needs timm: pip install timm") from error
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name[:6]}*")[:5])
        raise ValueError(f"timm has no model {name!r}{f'; near it are {near}' if near else ''}")
    try:
        network = timm.create_model(name, pretrained=False, num_classes=classes, in_chans=channels, img_size=image_size)
    except TypeError:  # most convolutional networks take any size and have no such argument
        network = timm.create_model(name, pretrained=False, num_classes=classes, in_chans=channels)
    assert isinstance(network, nn.Module)
    return network


def _convolution(layer: nn.Conv2d) -> nn.Conv2d:
    _initialize(layer)
    return layer


def _initialize(layer: nn.Module) -> None:
    """torchvision's own initialization of these networks' layers."""
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    elif isinstance(layer, nn.BatchNorm2d):
        layer.reset_parameters()
