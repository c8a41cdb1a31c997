"""Pooled moments: counts, means and sums of squared deviations that are merged exactly, over batches and over processes."""

from dataclasses import dataclass

import torch
from torch import Tensor


def _wide(device: torch.device) -> torch.dtype:
    """The precision moments are merged in: float64 wherever the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def is_distributed() -> bool:
    """Whether there are other processes to pool with."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


@dataclass
class Moments:
    """How many values each channel has seen, their mean, and their sum of squared deviations from it."""

    count: Tensor
    mean: Tensor
    deviation: Tensor

    @classmethod
    def empty(cls, like: Tensor) -> "Moments":
        """The moments of no values, for the channels of ``like``."""
        nothing = torch.zeros(like.numel(), dtype=_wide(like.device), device=like.device)
        return cls(nothing.new_zeros(()), nothing, nothing.clone())

    @classmethod
    def of(cls, values: Tensor, dims: list[int]) -> "Moments":
        """The moments of ``values`` over ``dims``, by two passes and a correction for the rounding of the mean.

        >>> import torch
        >>> from lookaround.averaging.moments import Moments
        >>> m = Moments.of(torch.tensor([[1.0], [3.0]]), [0])
        >>> m.count.item(), m.mean.item(), m.deviation.item()
        (2.0, 2.0, 2.0)
        """
        values = values.detach()
        if values.dtype.itemsize < 4:
            values = values.float()
        center = values.mean(dims, keepdim=True)
        centered = values - center
        wide = _wide(values.device)
        rest = centered.sum(dims).to(wide)
        count = torch.tensor(values.numel() // max(center.numel(), 1), dtype=wide, device=values.device)
        deviation = centered.square_().sum(dims).to(wide) - rest.square() / count
        return cls(count, center.flatten().to(wide) + rest / count, deviation)

    def merge(self, other: "Moments") -> "Moments":
        """The moments of both sets of values together (Chan, Golub and LeVeque 1979).

        >>> import torch
        >>> from lookaround.averaging.moments import Moments
        >>> a, b = (Moments.of(torch.tensor(v), [0]) for v in ([[1.0], [3.0]], [[8.0]]))
        >>> m = a.merge(b); m.mean.item(), m.deviation.item()
        (4.0, 26.0)
        """
        count = self.count + other.count
        delta = other.mean - self.mean
        share = torch.where(count > 0, other.count / count.clamp(min=1), 0.0)
        deviation = self.deviation + other.deviation + delta.square() * self.count * share
        return Moments(count, self.mean + delta * share, deviation)

    def over_processes(self) -> "Moments":
        """The moments of the values of all processes of the default group together, merged in the order of ranks everywhere."""
        packed = torch.stack([self.count.expand_as(self.mean), self.mean, self.deviation])
        parts = [torch.empty_like(packed) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, packed)
        merged = Moments(*parts[0])
        for part in parts[1:]:
            merged = merged.merge(Moments(*part))
        return merged

    def unbiased_variance(self) -> Tensor:
        """The variance with the divisor n - 1, as PyTorch's running variance has it (n where there is one value)."""
        return self.deviation / (self.count - 1).clamp(min=1)
