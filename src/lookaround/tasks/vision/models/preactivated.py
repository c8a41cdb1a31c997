"""Pre-activation ResNets and wide ResNets for small images, which neither torchvision nor timm has."""

from __future__ import annotations

from torch import Tensor, nn


class Preactivated(nn.Module):
    """Norm, ReLU and convolution, several times, added to the input (He et al. 2016, Identity mappings).

    Args:
        channels: that come in, and that come out of each convolution.
        kernels: sizes of the convolutions.
        stride: of the convolution that halves the image, the first of size 3.
    """

    def __init__(self, channels: list[int], kernels: list[int], stride: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        halves = kernels.index(3)
        for place, (before, after, kernel) in enumerate(zip(channels, channels[1:], kernels, strict=False)):
            step = stride if place == halves else 1
            convolution = nn.Conv2d(before, after, kernel, step, kernel // 2, bias=False)
            layers += [nn.BatchNorm2d(before), nn.ReLU(inplace=True), convolution]
        self.first = nn.Sequential(*layers[:2])
        self.body = nn.Sequential(*layers[2:])
        changes = stride != 1 or channels[0] != channels[-1]
        self.shortcut = nn.Conv2d(channels[0], channels[-1], 1, stride, bias=False) if changes else None

    def forward(self, inputs: Tensor) -> Tensor:
        active = self.first(inputs)
        # Where the shape changes the shortcut sees what is normalized, as in the authors' code.
        kept = inputs if self.shortcut is None else self.shortcut(active)
        output: Tensor = kept + self.body(active)
        return output


def preactivated_network(depth: int, classes: int, channels: int) -> nn.Sequential:
    """PreResNet of bottlenecks for small images: PreResNet-110 and -164 of Zhang et al. 2019 and Guo et al. 2022.

    Three stages of (depth - 2) / 9 bottlenecks of 16, 32 and 64 channels, four times as many between them. PreResNet-164 on
    CIFAR-10 has 1,703,258 parameters.
    """
    blocks, inputs = (depth - 2) // 9, 16
    layers: list[nn.Module] = [nn.Conv2d(channels, 16, 3, padding=1, bias=False)]
    for width, stride in ((16, 1), (32, 2), (64, 2)):
        for block in range(blocks):
            layers.append(Preactivated([inputs, width, width, 4 * width], [1, 3, 1], stride if block == 0 else 1))
            inputs = 4 * width
    return _finished(layers, inputs, classes)


def wide_network(depth: int, factor: int, classes: int, channels: int) -> nn.Sequential:
    """Wide ResNet (Zagoruyko and Komodakis 2016): three stages of (depth - 4) / 6 blocks of two 3x3 convolutions.

    WideResNet-28-10 on CIFAR-10 has 36,479,194 parameters.
    """
    blocks, inputs = (depth - 4) // 6, 16
    layers: list[nn.Module] = [nn.Conv2d(channels, 16, 3, padding=1, bias=False)]
    for width, stride in ((16 * factor, 1), (32 * factor, 2), (64 * factor, 2)):
        for block in range(blocks):
            layers.append(Preactivated([inputs, width, width], [3, 3], stride if block == 0 else 1))
            inputs = width
    return _finished(layers, inputs, classes)


def _finished(layers: list[nn.Module], width: int, classes: int) -> nn.Sequential:
    ending = [nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    network = nn.Sequential(*layers, *ending, nn.Linear(width, classes))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network
