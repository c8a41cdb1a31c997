"""Norm statistics of one point: pooled over a data stream at the price of the forward passes alone.

A batch-norm layer in training mode measures every batch anyway and, with momentum 1, leaves the batch's mean and unbiased
variance in its buffers. They are read off after each call and pooled in float64, so that no input is read a second time. The result
is that of `lookaround.averaging.update_norm_stats`, but of this process alone: under a split grid every process is at another point.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm


class _Pool:
    """The moments of one layer's inputs, batch after batch."""

    def __init__(self, layer: _NormBase) -> None:
        self.layer = layer
        self.counts: list[int] = []
        self.means: list[Tensor] = []
        self.variances: list[Tensor] = []

    def see(self, _: nn.Module, inputs: tuple[Any, ...], __: Any) -> None:
        """Note what the layer has just measured: the hook after its forward."""
        values = inputs[0]
        per_instance = isinstance(self.layer, _InstanceNorm)
        self.counts.append(len(values) if per_instance else values.numel() // max(values.shape[1], 1))
        self.means.append(cast(Tensor, self.layer.running_mean).clone())
        self.variances.append(cast(Tensor, self.layer.running_var).clone())

    def write(self) -> None:
        """Put the pooled mean and unbiased variance into the layer; one that never ran keeps what it has."""
        if not self.counts:
            return
        means, variances = torch.stack(self.means).double(), torch.stack(self.variances).double()
        n = torch.tensor(self.counts, dtype=torch.float64, device=means.device)[:, None]
        mean = (n * means).sum(0) / n.sum()
        if isinstance(self.layer, _InstanceNorm):
            variance = (n * variances).sum(0) / n.sum()
        else:
            deviation = (n - 1) * variances + n * (means - mean).square()
            variance = deviation.sum(0) / (n.sum() - 1)
        cast(Tensor, self.layer.running_mean).copy_(mean)
        cast(Tensor, self.layer.running_var).copy_(variance)


def tracked_norms(model: nn.Module) -> list[_NormBase]:
    """The batch- and instance-norm layers of ``model`` that keep running statistics."""
    return [m for m in model.modules() if isinstance(m, _NormBase) and m.running_mean is not None]


@torch.no_grad()
def reestimate(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Give the norm layers of a model in evaluation mode the pooled moments of their inputs over ``batches``.

    The layers are left in evaluation mode, with a momentum of 1. A batch of a single value a channel raises the layer's
    own ValueError.

    >>> import torch
    >>> from torch import nn
    >>> from lookaround.landscape.norms import reestimate
    >>> norm = nn.BatchNorm1d(1).eval()
    >>> reestimate(norm, [torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0], [6.0], [8.0]])])
    >>> norm.running_mean, norm.running_var
    (tensor([4.]), tensor([10.]))
    """
    pools = [_Pool(layer) for layer in tracked_norms(model)]
    if not pools:
        return
    with ExitStack() as hooks:
        for pool in pools:
            pool.layer.momentum = 1.0
            pool.layer.train()
            hooks.callback(pool.layer.eval)
            hooks.callback(pool.layer.register_forward_hook(pool.see).remove)
        for inputs in batches:
            model(inputs)
    for pool in pools:
        pool.write()
