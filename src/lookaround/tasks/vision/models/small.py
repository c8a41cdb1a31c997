"""Two small convolutional networks that train in minutes: one for 8x8 digits, and a ResNet-9."""

from __future__ import annotations

from torch import Tensor, nn


def _conv(inputs: int, outputs: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]


class Residual(nn.Module):
    """Two 3x3 convolutions, each with batch norm and ReLU, added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_conv(channels, channels), *_conv(channels, channels))

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = inputs + self.body(inputs)
        return output


class ScaledLinear(nn.Linear):
    """A linear layer whose output is scaled by 1/8, the head of the DAWNBench networks.

    Max-pooled features are all positive and large, so a plain linear layer overshoots at the usual learning rates.
    Scaled, its weights get an eighth of the gradient, and a step moves the logits 64 times less.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) * 0.125


def small_cnn(classes: int, channels: int, width: int) -> nn.Sequential:
    """Four 3x3 convolutions with batch norm, of width, 2, 2 and 4 × width channels, and a linear classifier.

    It halves the image twice, so images are at least 4x4. Width 16 on digits has 33,338 parameters.
    """
    return nn.Sequential(
        *_conv(channels, width),
        *_conv(width, 2 * width),
        nn.MaxPool2d(2),
        *_conv(2 * width, 2 * width),
        nn.MaxPool2d(2),
        *_conv(2 * width, 4 * width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, classes),
    )


def resnet9(classes: int, channels: int, width: int) -> nn.Sequential:
    """The nine-layer residual network of the DAWNBench entries, of width, 2, 4 and 8 × width channels.

    It halves the image three times, so images are at least 8x8. Width 64 on CIFAR-10 has 6,573,130 parameters.
    """
    return nn.Sequential(
        *_conv(channels, width),
        *_conv(width, 2 * width),
        nn.MaxPool2d(2),
        Residual(2 * width),
        *_conv(2 * width, 4 * width),
        nn.MaxPool2d(2),
        *_conv(4 * width, 8 * width),
        nn.MaxPool2d(2),
        Residual(8 * width),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        ScaledLinear(8 * width, classes),
    )


def toy_cnn(classes: int, channels: int, width: int) -> nn.Sequential:
    """Two 3x3 convolutions, each halved by max-pooling, and two linear layers: the toy network of Guo et al. 2022, figure 1.

    The paper gives neither channels nor units: here they are width and 2 × width, and 4 × width for every pixel of a pooled
    4x4 image. It is pooled to that whatever the image.
    """
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(32 * width, 4 * width),
        nn.ReLU(inplace=True),
        nn.Linear(4 * width, classes),
    )


class Scaled(nn.Module):
    """Multiplies its input by a number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.factor


def airbench(classes: int, channels: int, width: int) -> nn.Sequential:
    """The network of Jordan 2024 (94 % on CIFAR-10 in 3.29 seconds, airbench94), a ResNet-9 without its residuals.

    A 2x2 convolution to 24 channels, then three groups (width, 4 × width and 4 × width channels) of a 3x3 convolution, pooling and
    another 3x3 convolution, batch norm without scales and GELU after each, and a linear layer without bias whose output is divided by 9.
    There the first layer's filters are the whitened patches of the training images, and stay so; here they are drawn, and trained.
    The 3x3 filters begin as the identity on as many channels as there are. Images are at least 9x9.
    """
    first = nn.Conv2d(channels, 24, 2)
    groups = [_group(before, after) for before, after in ((24, width), (width, 4 * width), (4 * width, 4 * width))]
    last = nn.Linear(4 * width, classes, bias=False)
    return nn.Sequential(first, nn.GELU(), *groups, nn.AdaptiveMaxPool2d(1), nn.Flatten(), last, Scaled(1 / 9))


def _group(inputs: int, outputs: int) -> nn.Sequential:
    convolutions = [
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
    ]
    for convolution in convolutions:
        nn.init.dirac_(convolution.weight[: convolution.in_channels])
    norms = [nn.BatchNorm2d(outputs, momentum=0.4, eps=1e-12) for _ in range(2)]
    for norm in norms:
        norm.weight.requires_grad_(False)
    return nn.Sequential(convolutions[0], nn.MaxPool2d(2), norms[0], nn.GELU(), convolutions[1], norms[1], nn.GELU())
