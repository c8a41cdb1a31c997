"""Norm statistics of one point: pooled over a data stream at the price of the forward passes alone.

A batch-norm layer in training mode measures every batch anyway and, with momentum 1, leaves the batch's mean and unbiased
variance in its buffers. They are read off after each call and pooled in float64, so that no input is read a second time. The result
is that of `lookaround.averaging.update_norm_stats`, but of this process alone: under a split grid every process is at another point.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from lookaround.averaging.norm_layers import norm_layers


class _Seen(NamedTuple):
    """The moments of one input: how many values a channel had (instances, for instance norm), their mean and unbiased variance."""

    values: int
    mean: Tensor
    variance: Tensor


class _Pool:
    """The moments of one layer's inputs, batch after batch, those of its first call in a forward pass, of its second, ….

    Attributes:
        in_batch: The calls in the forward pass that is running.
    """

    def __init__(self, name: str, layer: Any) -> None:
        self.name, self.layer = name, layer
        self.calls: list[list[_Seen]] = []
        self.in_batch = 0
        self.before = layer.running_mean.clone()
        # A batch norm with a forward of its own may leave anything in its buffers, and those of 16 bits round what they are given.
        own = isinstance(layer, _BatchNorm) and not type(layer).forward.__module__.startswith("torch.")
        self.from_inputs = own or layer.running_mean.dtype.itemsize < 4

    def call(self, forward: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the layer's forward on one input, and take note of what it has measured."""
        values = args[0] if args else kwargs["input"]
        # Of no samples there are no statistics, and instance norm in training mode would make its own NaN.
        self.layer.training = values.numel() > 0
        if not self.layer.training:
            return forward(*args, **kwargs)
        if self.in_batch == len(self.calls):
            self.calls.append([])
        seen = self.calls[self.in_batch]
        self.in_batch += 1
        if not isinstance(self.layer, _InstanceNorm) and values.numel() == values.shape[1]:
            self._see_one(values, seen)
            return forward(*args, **kwargs)
        if self.from_inputs:
            seen.append(
                _of_instances(self.layer, values) if isinstance(self.layer, _InstanceNorm) else _measured(values)
            )
            return forward(*args, **kwargs)
        # Momentum 1 multiplies what is there by zero, which NaN of an earlier point would survive.
        self.layer.running_mean.zero_()
        self.layer.running_var.zero_()
        outputs = forward(*args, **kwargs)
        seen.append(_Seen(self._count(values), self.layer.running_mean.clone(), self.layer.running_var.clone()))
        return outputs

    def _count(self, values: Tensor) -> int:
        if not isinstance(self.layer, _InstanceNorm):
            return values.numel() // values.shape[1]
        return len(values) if values.dim() > self.layer._get_no_batch_dim() else 1

    def _see_one(self, values: Tensor, seen: list[_Seen]) -> None:
        """One value per channel has no variance to be normalised with: use what its samples have had so far, itself included."""
        if sum(each.values for each in seen) < 2:
            raise ValueError(
                f"norm layer {self.name!r} got a batch of a single value per channel before any larger one, and one value has no "
                "variance to normalise with; put a batch of two or more samples first"
            )
        mean = values.detach().flatten().to(self.layer.running_mean.device, torch.float64)
        seen.append(_Seen(1, mean, torch.zeros_like(mean)))
        self._put(seen)
        self.layer.training = False

    def write(self) -> None:
        """Put the pooled mean and unbiased variance into the layer; one that never ran keeps what it has.

        Raises:
            ValueError: It ran where its inputs cannot be seen.
        """
        if self.calls:
            self._put([each for seen in self.calls for each in seen])
        elif not torch.equal(self.before, self.layer.running_mean):
            raise ValueError(
                f"the statistics of norm layer {self.name!r} moved without a call of it (by torch.nn.functional, say), so its "
                "inputs cannot be seen; call the layer itself, or keep the statistics with norm_stats='fixed'"
            )

    def _put(self, seen: Sequence[_Seen]) -> None:
        means = torch.stack([each.mean.double() for each in seen])
        variances = torch.stack([each.variance.double() for each in seen])
        n = torch.tensor([each.values for each in seen], dtype=torch.float64, device=means.device)[:, None]
        mean = (n * means).sum(0) / n.sum()
        if isinstance(self.layer, _InstanceNorm):
            variance = (n * variances).sum(0) / n.sum()
        else:
            deviation = (n - 1) * variances + n * (means - mean).square()
            variance = deviation.sum(0) / (n.sum() - 1)
        self.layer.running_mean.copy_(mean)
        self.layer.running_var.copy_(variance)


def _measured(values: Tensor) -> _Seen:
    """The moments of a batch norm's input, read from it."""
    variance, mean = torch.var_mean(values.detach().double().transpose(0, 1).flatten(1), 1)
    return _Seen(values.numel() // values.shape[1], mean, variance)


def _of_instances(layer: Any, values: Tensor) -> _Seen:
    """The mean over instances of their moments, which is what instance norm tracks."""
    batched = values if values.dim() > layer._get_no_batch_dim() else values[None]
    variance, mean = torch.var_mean(batched.detach().double().flatten(2), 2)
    return _Seen(len(batched), mean.mean(0), variance.mean(0))


def tracked_norms(model: nn.Module) -> list[_NormBase]:
    """The batch- and instance-norm layers of ``model`` that keep running statistics."""
    return [m for m in model.modules() if isinstance(m, _NormBase) and m.running_mean is not None]


@contextmanager
def _measuring(pools: Sequence[_Pool]) -> Iterator[None]:
    """Have each layer's forward measured, whether it is called as ``layer(x)`` or ``layer.forward(x)``."""
    own = [pool.layer.__dict__.get("forward") for pool in pools]
    for pool in pools:
        pool.layer.momentum, pool.layer.training = 1.0, True
        pool.layer.forward = partial(pool.call, pool.layer.forward)
    try:
        yield
    finally:
        for pool, forward in zip(pools, own, strict=True):
            pool.layer.training = False
            del pool.layer.forward
            if forward is not None:
                pool.layer.forward = forward


@contextmanager
def _kept(layers: Sequence[nn.Module]) -> Iterator[None]:
    """The layers' buffers as they were, if the block raises."""
    before = [(buffer, buffer.clone()) for layer in layers for buffer in layer.buffers(recurse=False)]
    try:
        yield
    except BaseException:
        for buffer, value in before:
            buffer.copy_(value)
        raise


@torch.no_grad()
def reestimate(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Give the norm layers of a model in evaluation mode the pooled moments of their inputs over ``batches``.

    The layers are left in evaluation mode, with a momentum of 1. Empty batches are skipped. A batch of a single value a channel
    counts like any other; what it is normalised with for the layers behind are the statistics of the batches before it. If anything
    raises, the statistics are what they were.

    Raises:
        ValueError: A batch of a single value a channel comes before any larger one; or a layer runs where its inputs cannot be
            seen: inside ``torch.jit.script``, through ``torch.nn.functional``.

    >>> import torch
    >>> from torch import nn
    >>> from lookaround.landscape.norms import reestimate
    >>> norm = nn.BatchNorm1d(1).eval()
    >>> reestimate(norm, [torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0], [6.0], [8.0]])])
    >>> norm.running_mean, norm.running_var
    (tensor([4.]), tensor([10.]))
    """
    pools = [_Pool(watched.name, watched.layer) for watched in norm_layers(model)]
    if not pools:
        return
    with _kept([pool.layer for pool in pools]):
        with _measuring(pools):
            for inputs in batches:
                for pool in pools:
                    pool.in_batch = 0
                if inputs.numel():
                    model(inputs)
        for pool in pools:
            pool.write()
