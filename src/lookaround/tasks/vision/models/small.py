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
