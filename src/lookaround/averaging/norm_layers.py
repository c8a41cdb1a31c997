"""Watching norm layers at work: the moments of what each of their calls gets, and what each call normalises with."""

import itertools
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from lookaround.averaging.moments import Moments

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


class ReachedError(BaseException):
    """The call a forward pass was made for has been reached; the rest of the pass is not needed."""


class Call:
    """One call of a norm layer in a forward pass, the first, the second, …: the moments of its inputs over all batches."""

    def __init__(self, layer: _NormBase) -> None:
        self.layer = layer
        self.forget()

    def forget(self) -> None:
        """Start over with no values."""
        # Batch norm pools the inputs; instance norm the means and the variances of instances, which its statistics average.
        like: Tensor = self.layer.running_mean  # type: ignore[assignment]  # only layers that have one are watched
        self.pools = [Moments.empty(like) for _ in range(2 if isinstance(self.layer, _InstanceNorm) else 1)]
        self.first, self.count, self.known = sys.maxsize, 0, False

    def add(self, values: Tensor, when: int) -> None:
        """Pool the moments of one more input."""
        found = _of_instances(self.layer, values) if len(self.pools) > 1 else [_of_batch(values)]
        self.pools = [pool.merge(new) for pool, new in zip(self.pools, found, strict=True)]
        self.first = min(self.first, when)
        self.count += 1


class Watched:
    """A norm layer whose forward is observed, however it is called.

    Attributes:
        name: The layer's name in the model.
        calls: Its calls in the order a forward pass makes them.
    """

    def __init__(self, name: str, layer: _NormBase) -> None:
        self.name, self.layer = name, layer
        self.calls: list[Call] = []
        self.in_batch = 0

    @property
    def count(self) -> int:
        """The inputs seen, over all calls."""
        return sum(call.count for call in self.calls)

    def call(self, index: int) -> Call:
        """The ``index``-th call of a pass, a new one if no pass has made so many yet."""
        while index >= len(self.calls):
            self.calls.append(Call(self.layer))
        return self.calls[index]

    def see(self, values: Tensor, when: int, target: Call | None) -> None:
        """Take note of one input, and choose what the layer normalises it with. Ends the pass at ``target``.

        Without a target every call is collected, and normalises with the statistics of its batch; a call whose
        statistics are known normalises with these.
        """
        # Of no samples there are no statistics, and instance norm in training mode would make its own NaN.
        self.layer.training = values.numel() > 0
        if not self.layer.training:
            return
        call = self.call(self.in_batch)
        self.in_batch += 1
        if target is None or call is target:
            call.add(values, when)
        if call is target:
            raise ReachedError
        if call.known:
            self._use([call])
        elif not isinstance(self.layer, _InstanceNorm) and values.numel() == values.shape[1]:
            self._use_pooled(call)

    def _use(self, calls: Sequence[Call]) -> None:
        self.layer.training = False
        self.write(calls)

    def _use_pooled(self, call: Call) -> None:
        """One value per channel has no variance to be normalised with: use what its samples have had so far."""
        if call.pools[0].count <= 2:
            raise ValueError(
                f"norm layer {self.name!r} got a batch of a single value per channel before any larger one, and one value has no "
                "variance to normalise with; put a batch of two or more samples first"
            )
        self._use([call])

    def write(self, calls: Sequence[Call]) -> None:
        """Put the pooled statistics of ``calls`` into the layer, if they have seen any samples."""
        count = sum(call.count for call in calls)
        if not count:
            return
        first, *rest = [call.pools for call in calls if call.count]
        for pools in rest:
            first = [one.merge(other) for one, other in zip(first, pools, strict=True)]
        variance = first[1].mean if len(first) > 1 else first[0].unbiased_variance()
        for name, value in zip(BUFFERS, (first[0].mean, variance, torch.tensor(count)), strict=True):
            buffer = getattr(self.layer, name)
            if buffer is not None:
                buffer.copy_(value)


@contextmanager
def watching(watched: Sequence[Watched], target: Call | None) -> Iterator[None]:
    """Observe the layers' forwards while the block runs, whether they are called as ``layer(x)`` or ``layer.forward(x)``."""
    clock = itertools.count()
    before = [w.layer.__dict__.get("forward") for w in watched]
    for w in watched:
        w.layer.forward = _observed(w, clock, target)
    try:
        yield
    finally:
        for w, own in zip(watched, before, strict=True):
            del w.layer.forward
            if own is not None:
                w.layer.forward = own


def _observed(watched: Watched, clock: Iterator[int], target: Call | None) -> Any:
    forward = watched.layer.forward

    def observed(*args: Any, **kwargs: Any) -> Any:
        watched.see(args[0] if args else kwargs["input"], next(clock), target)
        return forward(*args, **kwargs)

    return observed


def norm_layers(model: nn.Module) -> list[Watched]:
    """The batch- and instance-norm layers of ``model`` that keep running statistics.

    Raises:
        ValueError: One is part of a module that ``torch.jit`` has compiled, which shows nothing of its layers' inputs.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) and isinstance(getattr(module, "running_mean", None), Tensor):
            raise ValueError(
                f"norm layer {name!r} was compiled by torch.jit, where its inputs cannot be seen; re-estimate the statistics of the "
                "model before torch.jit.script or torch.jit.trace, and compile it afterwards"
            )
    return [Watched(n, m) for n, m in model.named_modules() if isinstance(m, _NormBase) and m.running_mean is not None]


def _of_batch(values: Tensor) -> Moments:
    return Moments.of(values, [d for d in range(values.dim()) if d != 1])


def _of_instances(layer: Any, values: Tensor) -> list[Moments]:
    batched = values if values.dim() > layer._get_no_batch_dim() else values[None]
    wide = batched.float() if batched.dtype.itemsize < 4 else batched
    variance, mean = torch.var_mean(wide.flatten(2), 2)
    return [Moments.of(mean, [0]), Moments.of(variance, [0])]
