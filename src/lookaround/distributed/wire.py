"""How numbers travel between rows: as they are, in bfloat16, or in int8 with a scale for every block of them."""

from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

Format = Literal["exact", "bfloat16", "int8"]


class Wire(Protocol):
    """One format: numbers to bytes and back.

    Attributes:
        exact: whether what arrives is what was sent. What is not is sent as a displacement, and what is lost is sent the next time.
        multiple: a slice on the wire holds a multiple of this many numbers.
    """

    exact: ClassVar[bool]
    multiple: ClassVar[int]

    def encode(self, values: Tensor) -> Tensor:
        """``(slices, numbers)`` of a floating dtype to uint8 ``(slices, bytes)``."""

    def decode(self, data: Tensor, dtype: torch.dtype) -> Tensor:
        """The inverse, in ``dtype``."""


class Exact:
    """The numbers as they are: 4 bytes each, 8 in float64."""

    exact: ClassVar[bool] = True
    multiple: ClassVar[int] = 1

    def encode(self, values: Tensor) -> Tensor:
        """See `Wire.encode`; the bytes share memory with the numbers."""
        return values.view(torch.uint8)

    def decode(self, data: Tensor, dtype: torch.dtype) -> Tensor:
        """See `Wire.decode`; the numbers share memory with the bytes."""
        return data.view(dtype)


class BFloat16:
    """Rounded to bfloat16: 2 bytes each, and a relative error of up to 2⁻⁹."""

    exact: ClassVar[bool] = False
    multiple: ClassVar[int] = 1

    def encode(self, values: Tensor) -> Tensor:
        """See `Wire.encode`."""
        return values.to(torch.bfloat16).view(torch.uint8)

    def decode(self, data: Tensor, dtype: torch.dtype) -> Tensor:
        """See `Wire.decode`."""
        return data.view(torch.bfloat16).to(dtype)


class Int8:
    """Rounded to 255 steps between the extremes of each block of 128 numbers: 1.03 bytes each with the blocks' float32 scales.

    The error is up to 1/254 of the largest number of the block. A block with something infinite or NaN arrives as NaN.

    >>> wire = Int8()
    >>> sent = torch.zeros(1, 128)
    >>> sent[0, :3] = torch.tensor([1.27, 0.5, -0.011])
    >>> wire.decode(wire.encode(sent), torch.float32)[0, :3]
    tensor([ 1.2700,  0.5000, -0.0100])
    """

    exact: ClassVar[bool] = False
    multiple: ClassVar[int] = 128
    _STEPS: ClassVar[int] = 127

    def encode(self, values: Tensor) -> Tensor:
        """See `Wire.encode`: first the steps of all blocks, then their scales."""
        blocks = values.float().unflatten(-1, (-1, self.multiple))
        scales = blocks.abs().amax(-1, keepdim=True) / self._STEPS
        steps = (blocks / scales).nan_to_num_(0.0, 0.0, 0.0).round_().to(torch.int8)
        return torch.cat([steps.flatten(-2).view(torch.uint8), scales.squeeze(-1).view(torch.uint8)], dim=-1)

    def decode(self, data: Tensor, dtype: torch.dtype) -> Tensor:
        """See `Wire.decode`."""
        numbers = data.shape[-1] * self.multiple // (self.multiple + 4)
        steps = data[..., :numbers].view(torch.int8).unflatten(-1, (-1, self.multiple))
        scales = data[..., numbers:].contiguous().view(torch.float32).unsqueeze(-1)
        values: Tensor = (steps * scales).to(dtype).flatten(-2)
        return values


WIRES: dict[str, Wire] = {"exact": Exact(), "bfloat16": BFloat16(), "int8": Int8()}


def by_name(name: Format) -> Wire:
    """A format by name.

    Raises:
        ValueError: for an unknown one.
    """
    if name not in WIRES:
        raise ValueError(f"wire has to be one of {', '.join(WIRES)}, got {name!r}")
    return WIRES[name]
