"""Re-estimating the running statistics of norm layers over a data stream: ``torch.optim.swa_utils.update_bn`` done right."""

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lookaround.averaging.moments import is_distributed
from lookaround.averaging.norm_layers import BUFFERS, Call, ReachedError, Watched, norm_layers, watching
from lookaround.averaging.slots import unwrap


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
    instances of their means and unbiased variances, which is what it tracks. Empty batches are skipped. A batch of a single
    value per channel, as the last one of a loader may be, counts like any other; what it is normalised with for the
    layers behind are the statistics of the batches before it.

    This is PyTorch's ``update_bn`` under a name that says what it does: it is not for batch norm alone, and it takes any
    batch through ``forward``. In ``torch.optim.swa_utils.update_bn(loader, model)`` the arguments are the other way round.

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
    each call of a norm layer, each time only as deep as that call: a model of 20 norm layers takes 21 passes, about
    the work of 11 whole ones. A layer that is called several times in a forward pass (shared by siamese inputs, or in a loop) keeps
    the statistics of all its calls together; on the way to them each call is normalised with those of its own inputs.

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
        ValueError: There are no batches or all are empty; no norm layer runs; one runs where its inputs cannot be seen
            (inside ``torch.jit.script``, through ``torch.nn.functional``); a batch of a single value per channel comes before any
            larger one; or ``exact`` is asked for with a one-way iterator.

    >>> import torch
    >>> from torch import nn
    >>> from lookaround.averaging import update_norm_stats
    >>> norm = nn.BatchNorm1d(1)
    >>> update_norm_stats(norm, [torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0], [6.0], [8.0]])])
    >>> norm.running_mean, norm.running_var
    (tensor([4.]), tensor([10.]))

    References: Izmailov et al. 2018, section 3.2; "Update BN" in Zhang et al. 2023 (Lookaround), Table 11; the pooling is
    Chan, Golub and LeVeque 1979.
    """
    layers = norm_layers(model)
    if not layers:
        return
    if exact and iter(batches) is batches:
        raise ValueError("exact=True goes over the batches many times and needs a list or a loader, not an iterator")
    run = (
        forward
        if forward is not None
        else partial(_run, unwrap(model), next(itertools.chain(model.parameters(), model.buffers())).device)
    )
    with _only_training(model, layers), _uncompiled():
        _collect(layers, batches, run)
        if not any(watched.count for watched in layers):
            raise ValueError(
                "there were no batches with samples, or none reached a norm layer; the statistics stay as they were"
            )
        if exact:
            _refine(layers, batches, run)
        for watched in layers:
            watched.write(watched.calls)


def _collect(
    layers: Sequence[Watched], batches: Iterable[Any], run: Callable[[Any], object], target: Call | None = None
) -> None:
    """Run the model over the batches and pool what its norm layers see: all of them, or the calls that ``target`` stands for."""
    unseen = [(w, w.layer.running_mean.clone()) for w in layers] if target is None else []  # type: ignore[union-attr]
    with watching(layers, target):
        for batch in batches:
            for watched in layers:
                watched.in_batch = 0
            with suppress(ReachedError):
                run(batch)
    for watched, before in unseen:
        if watched.count == 0 and not torch.equal(before, watched.layer.running_mean):  # type: ignore[arg-type]
            raise ValueError(
                f"the statistics of norm layer {watched.name!r} moved without a call of it (by torch.nn.functional, say), so its "
                "inputs cannot be seen; call the layer itself"
            )
    if is_distributed():
        _reduce(layers if target is None else [], [target] if target is not None else [])


def _reduce(layers: Sequence[Watched], calls: list[Call]) -> None:
    """Pool with the other processes. They agree on the calls and on their order, and so on the passes to come."""
    if layers:
        most = torch.tensor([len(w.calls) for w in layers], device=_device(layers))
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
        calls = [watched.call(i) for watched, n in zip(layers, most.tolist(), strict=True) for i in range(n)]
    if not calls:
        return
    device = calls[0].pools[0].mean.device
    first = torch.tensor([c.first for c in calls], device=device)
    counts = torch.tensor([c.count for c in calls], device=device)
    torch.distributed.all_reduce(first, torch.distributed.ReduceOp.MIN)
    torch.distributed.all_reduce(counts)
    for call, when, total in zip(calls, first.tolist(), counts.tolist(), strict=True):
        call.pools = [pool.over_processes() for pool in call.pools]
        call.first, call.count = when, total


def _device(layers: Sequence[Watched]) -> torch.device:
    device: torch.device = layers[0].layer.running_mean.device  # type: ignore[union-attr]
    return device


def _refine(layers: Sequence[Watched], batches: Iterable[Any], run: Callable[[Any], object]) -> None:
    """One pass for each call in the order they came, each after the calls before it have their final statistics."""
    for target in sorted((c for w in layers for c in w.calls if c.count), key=lambda c: c.first):
        target.forget()
        _collect(layers, batches, run, target)
        target.known = True


@contextmanager
def _only_training(model: nn.Module, layers: Sequence[Watched]) -> Iterator[None]:
    """Norm layers alone in training mode; all modes as they were afterwards, and all statistics if the block raises."""
    modes = [(module, module.training) for module in model.modules()]
    kept = [(b, b.clone()) for w in layers for n in BUFFERS if (b := getattr(w.layer, n)) is not None]
    model.eval()
    for watched in layers:
        watched.layer.training = True
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
