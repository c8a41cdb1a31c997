"""Re-estimating the running statistics of norm layers over a data stream: ``torch.optim.swa_utils.update_bn`` done right."""

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from lookaround.averaging.moments import Moments, is_distributed
from lookaround.averaging.slots import unwrap

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


class _ReachedError(BaseException):
    """The layer a forward pass was made for has been reached; the rest of the pass is not needed."""


class _Collector:
    """Pools the moments of one norm layer's inputs, and notes when the layer runs."""

    def __init__(self, layer: _NormBase, stop: int = 0) -> None:
        self.layer = layer
        self.stop = stop
        self.first = sys.maxsize
        self.calls = self.in_batch = self.most = 0
        # Batch norm pools the inputs; instance norm the means and the variances of instances, which its statistics average.
        like: Tensor = layer.running_mean  # type: ignore[assignment]  # only layers that have one are collected
        self.pools = [Moments.empty(like) for _ in range(2 if isinstance(layer, _InstanceNorm) else 1)]

    def see(self, when: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Add one input of the layer: the hook before its forward. Ends the pass if nothing after this is needed."""
        values = args[0] if args else kwargs["input"]
        # Of no samples there are no statistics, and instance norm in training mode would make its own NaN.
        self.layer.training = values.numel() > 0
        if not self.layer.training:
            return
        found = _of_instances(self.layer, values) if len(self.pools) > 1 else [_of_batch(values)]
        self.pools = [pool.merge(new) for pool, new in zip(self.pools, found, strict=True)]
        self.first = min(self.first, when)
        self.calls += 1
        self.in_batch += 1
        self.most = max(self.most, self.in_batch)
        if self.in_batch == self.stop:
            raise _ReachedError

    def write(self) -> None:
        """Put the statistics into the layer; one that saw no samples keeps what it had, in the passes to come too."""
        if self.calls == 0:
            self.layer.training = False
            return
        variance = self.pools[1].mean if len(self.pools) > 1 else self.pools[0].unbiased_variance()
        values = (self.pools[0].mean, variance, torch.tensor(self.calls))
        for name, value in zip(_BUFFERS, values, strict=True):
            buffer = getattr(self.layer, name)
            if buffer is not None:
                buffer.copy_(value)


def _of_batch(values: Tensor) -> Moments:
    return Moments.of(values, [d for d in range(values.dim()) if d != 1])


def _of_instances(layer: Any, values: Tensor) -> list[Moments]:
    batched = values if values.dim() > layer._get_no_batch_dim() else values[None]
    wide = batched.float() if batched.dtype.itemsize < 4 else batched
    variance, mean = torch.var_mean(wide.flatten(2), 2)
    return [Moments.of(mean, [0]), Moments.of(variance, [0])]


@torch.no_grad()
def update_norm_stats(
    model: nn.Module,
    batches: Iterable[Any],
    forward: Callable[[Any], object] | None = None,
    *,
    exact: bool = False,
) -> None:
    """Re-estimate the running mean and variance of a model's batch- and instance-norm layers over a data stream.

    Each layer gets the exact pooled moments of the inputs it saw: every sample counts once, whatever the batch sizes,
    and the variance holds what lies within batches and between them (``update_bn`` averages batch variances). They are
    pooled in float64 and, when ``torch.distributed`` is initialised, over all processes, which must then all make this
    call. The variance is the unbiased one, as in PyTorch's own running variance; instance norm gets the mean over
    instances of their means and unbiased variances, which is what it tracks. Empty batches are skipped.

    While it runs, norm layers alone are in training mode (dropout is off), gradients are off, and the caller's
    autocast applies. Afterwards every module's mode is what it was; if anything raises, the statistics are too.

    What a deeper layer sees depends on how the layers before it normalise. By default there is one pass, in which every
    layer normalises with the statistics of the batch, as in training. So only the first layer's statistics are those of
    the whole data set whatever the batches are. Those of deeper layers depend on how the data is cut into batches, and
    are not the ones that evaluation, which normalises with running statistics, would find; the smaller the batches, the
    further they are off.

    With ``exact``, each layer's inputs come from layers that normalise with their final statistics, as in evaluation:
    for all layers the result is the same however the data is cut into batches, the one that a single batch of the whole
    data set would give (but for the biased variance batches are normalised with). It goes over the data once more for
    each norm layer that runs, each time only as deep as that layer: a model of 20 norm layers takes 21 passes, about
    the work of 11 whole ones.

    The default is for shuffled batches of the size of training, and for statistics that are re-estimated often; it is
    what ``update_bn`` and the papers do. Use ``exact`` for the last result where batches are small, of unequal sizes or
    not shuffled, and where it must not depend on them. Each pass of ``exact`` should give the same samples: leave
    random augmentation out.

    Args:
        model: The model, wrapped or not. It is run without compilation.
        batches: The data: tensors, or lists and tuples whose first element is the input tensor, which is moved to the
            model's device; anything with ``forward``. With ``exact``, something that can be iterated over again.
        forward: Runs the model on one batch of any structure, an empty one too:
            ``lambda batch: model(batch["image"].cuda())``.
        exact: See above.

    Raises:
        TypeError: Without ``forward``, a batch is neither a tensor nor a list or tuple that begins with one.
        ValueError: There are no batches or all are empty, no norm layer runs, or ``exact`` is asked for with a one-way
            iterator.

    >>> norm = nn.BatchNorm1d(1)
    >>> update_norm_stats(norm, [torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0], [6.0], [8.0]])])
    >>> norm.running_mean, norm.running_var
    (tensor([4.]), tensor([10.]))

    References: "Update BN" in Zhang et al. 2023 (Lookaround), Table 11; Izmailov et al. 2018; the pooling is Chan,
    Golub and LeVeque 1979.
    """
    layers = [m for m in model.modules() if isinstance(m, _NormBase) and m.running_mean is not None]
    if not layers:
        return
    if exact and iter(batches) is batches:
        raise ValueError("exact=True goes over the batches many times and needs a list or a loader, not an iterator")
    run = (
        forward
        if forward is not None
        else partial(_run, unwrap(model), next(itertools.chain(model.parameters(), model.buffers())).device)
    )
    collectors = [_Collector(layer) for layer in layers]
    with _only_training(model, layers), _uncompiled():
        _collect(collectors, batches, run)
        if not any(c.calls for c in collectors):
            raise ValueError(
                "there were no batches with samples, or none reached a norm layer; the statistics stay as they were"
            )
        if exact:
            _refine(collectors, batches, run)


def _collect(collectors: list[_Collector], batches: Iterable[Any], run: Callable[[Any], object]) -> None:
    """Run the model over the batches and write the statistics of the collectors' layers."""
    clock = itertools.count()
    with ExitStack() as hooks:
        for c in collectors:
            handle = c.layer.register_forward_pre_hook(lambda *a, c=c: c.see(next(clock), *a), with_kwargs=True)
            hooks.callback(handle.remove)
        for batch in batches:
            for c in collectors:
                c.in_batch = 0
            with suppress(_ReachedError):
                run(batch)
    if is_distributed():
        _reduce(collectors)
    for c in collectors:
        c.write()


def _reduce(collectors: list[_Collector]) -> None:
    """Pool with the other processes. They agree on the order in which layers ran, and so on the passes to come."""
    device = collectors[0].pools[0].mean.device
    first = torch.tensor([c.first for c in collectors], device=device)
    calls = torch.tensor([c.calls for c in collectors], device=device)
    torch.distributed.all_reduce(first, torch.distributed.ReduceOp.MIN)
    torch.distributed.all_reduce(calls)
    for c, when, total in zip(collectors, first.tolist(), calls.tolist(), strict=True):
        c.pools = [pool.over_processes() for pool in c.pools]
        c.first, c.calls = when, total


def _refine(collectors: list[_Collector], batches: Iterable[Any], run: Callable[[Any], object]) -> None:
    """One pass for each layer in the order they ran, each after the layers before it have their final statistics."""
    for done in sorted(collectors, key=lambda c: c.first):
        if done.calls:
            _collect([_Collector(done.layer, stop=done.most)], batches, run)
            done.layer.training = False


@contextmanager
def _only_training(model: nn.Module, layers: list[_NormBase]) -> Iterator[None]:
    """Norm layers alone in training mode; all modes as they were afterwards, and all statistics if the block raises."""
    modes = [(module, module.training) for module in model.modules()]
    kept = [(buffer, buffer.clone()) for m in layers for n in _BUFFERS if (buffer := getattr(m, n)) is not None]
    model.eval()
    for layer in layers:
        layer.training = True
    try:
        yield
    except BaseException:
        for buffer, value in kept:
            buffer.copy_(value)
        raise
    finally:
        for module, mode in modes:
            module.training = mode


def _uncompiled() -> AbstractContextManager[object]:
    """Compiled code does not look for new hooks, so it is not used meanwhile; without torch._dynamo there is none."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def _run(model: nn.Module, device: torch.device, batch: Any) -> None:
    inputs = batch[0] if isinstance(batch, (list, tuple)) and batch else batch
    if not isinstance(inputs, Tensor):
        raise TypeError(
            f"a batch is a tensor, or a list or tuple that begins with one, got {type(batch).__name__}; "
            "pass forward=lambda batch: model(...) for others"
        )
    if inputs.numel():
        model(inputs.to(device, non_blocking=True))
