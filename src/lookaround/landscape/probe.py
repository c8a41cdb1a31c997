"""Loss and accuracy of a network at any weights, without touching the network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lookaround.landscape.norms import reestimate, tracked_norms
from lookaround.landscape.weights import flatten, pieces, refuse_shards, unwrap
from lookaround.tensors import copy_

NormStats = Literal["reestimate", "fixed"]
"""Where norm layers take their statistics from: each point's own, from a data stream, or the model's."""

Batch = tuple[Tensor, Tensor]
Criterion = Callable[[Tensor, Tensor], Tensor]


class Value(NamedTuple):
    """What was measured at a point: mean loss, and accuracy in percent.

    Source: ours.
    """

    loss: float
    accuracy: float


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The sum of the samples' cross entropies, in nats."""
    return F.cross_entropy(logits.float(), targets, reduction="sum")


def correct(logits: Tensor, targets: Tensor) -> Tensor:
    """The number of samples whose target has the largest logit."""
    return (logits.argmax(-1) == targets).sum()


class Probe:
    """A copy of a model that is moved from point to point and measured there; the model itself is never written to.

    Parameters of the copy are views of one vector, so that a move is one matrix-vector product, and the batches stay on the
    model's device, arranged once as the convolutions like them. The cost is a copy of the model and of the rows that are
    mixed, and at each point the forward passes (twice those of the batches with re-estimated statistics).

    Args:
        model: a network, wrapped or not; its buffers are what ``norm_stats="fixed"`` means.
        batches: (inputs, targets) pairs on which points are measured.
        criterion: the sum of the losses of a batch, from outputs and targets.
        score: the number of hits in a batch; None where there is no such thing (then accuracy is NaN).
        norm_stats: ``"reestimate"`` pools every norm layer's statistics at every point over ``norm_batches``;
            ``"fixed"`` uses the model's own at all points.
        norm_batches: inputs for the statistics, usually of training data; without them those of ``batches``.
        channels_last: arrange images and convolutions channels-last, which is faster on CPUs and tensor cores and
            changes results in the last bits only.

    Raises:
        ValueError: there are no batches, ``norm_stats`` is unknown, or the model is sharded over processes or compiled by
            ``torch.jit``.

    Source: ours; the re-estimation of norm statistics at every point is that of Garipov et al. 2018, appendix.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Batch],
        *,
        criterion: Criterion = cross_entropy,
        score: Criterion | None = correct,
        norm_stats: NormStats = "reestimate",
        norm_batches: Iterable[Tensor] | None = None,
        channels_last: bool = True,
    ) -> None:
        if norm_stats not in ("reestimate", "fixed"):
            raise ValueError(f"norm_stats is 'reestimate' or 'fixed', got {norm_stats!r}")
        refuse_shards(model)
        _refuse_jit(model)
        self.model = deepcopy(unwrap(model)).eval().requires_grad_(False)
        self.norm_stats = norm_stats
        self._criterion, self._score = criterion, score
        self._pieces = pieces(self.model, channels_last)
        self._flat = torch.empty_like(flatten(self.model))
        self._set_up_parameters()
        self._rows: Tensor | None = None
        device = self._flat.device
        self.batches = [(_arranged(x, device, channels_last), y.to(device)) for x, y in batches]
        if not self.batches:
            raise ValueError("there are no batches to measure on; pass at least one (inputs, targets) pair")
        self.samples = sum(len(y) for _, y in self.batches)
        self.norm_inputs = [x for x, _ in self.batches]
        if norm_batches is not None:
            self.norm_inputs = [_arranged(x, device, channels_last) for x in norm_batches]
        if norm_stats == "reestimate" and not self.norm_inputs:
            raise ValueError(
                "there are no norm_batches to re-estimate norm statistics on; pass some, or norm_stats='fixed'"
            )

    @property
    def norm_note(self) -> str:
        """How norm statistics came about, in words for a figure."""
        if not tracked_norms(self.model):
            return "no norm statistics"
        if self.norm_stats == "fixed":
            return "norm statistics fixed"
        return f"norm statistics re-estimated on {sum(map(len, self.norm_inputs)):,} samples at every point"

    def describe(self) -> str:
        """The settings that values depend on, besides the tensors."""
        names = [getattr(f, "__qualname__", repr(f)) for f in (self._criterion, self._score)]
        return f"{self.norm_stats} {names[0]} {names[1]}"

    def tensors(self) -> list[Tensor]:
        """The data and buffers that values depend on."""
        data = [t for batch in self.batches for t in batch]
        return data + (list(self.model.buffers()) if self.norm_stats == "fixed" else self.norm_inputs)

    def _set_up_parameters(self) -> None:
        """Make the copy's parameters views of the vector, wherever tied ones stand; those of another dtype stay apart."""
        self._apart = {p: piece for p, piece in self._pieces.items() if p.dtype != self._flat.dtype}
        views = {
            p: nn.Parameter(piece.view(self._flat), requires_grad=False)
            for p, piece in self._pieces.items()
            if p not in self._apart
        }
        for module in self.model.modules():
            for name, parameter in module._parameters.items():
                if parameter in views:
                    module._parameters[name] = views[parameter]

    def span(self, rows: Tensor) -> None:
        """Take over the vectors ``(m, n)`` that points are mixed from, in the order of `flatten`.

        Raises:
            ValueError: n is not the model's number of weights.
        """
        if rows.shape[1] != self._flat.numel():
            raise ValueError(
                f"the geometry is of {rows.shape[1]} weights, the model has {self._flat.numel()}; build both from one network"
            )
        rows = rows.to(self._flat)
        self._rows = torch.cat([piece.arrange(rows) for piece in self._pieces.values()], 1)

    @torch.no_grad()
    def move(self, weights: Sequence[float]) -> None:
        """Go to the mixture of the rows with these weights."""
        assert self._rows is not None, "span() comes first"
        mixture = torch.tensor(weights, dtype=self._flat.dtype, device=self._flat.device)
        torch.mv(self._rows.t(), mixture, out=self._flat)
        copy_(list(self._apart), [piece.view(self._flat) for piece in self._apart.values()])

    def move_to(self, vector: Tensor) -> None:
        """Go to one weight vector, in the order of `flatten`."""
        self.span(vector[None])
        self.move([1.0])

    @torch.inference_mode()
    def measure(self) -> Value:
        """Mean loss and accuracy (percent) here. Waits for the device once."""
        if self.norm_stats == "reestimate":
            reestimate(self.model, self.norm_inputs)
        sums = torch.zeros(2, dtype=torch.float64, device=self._flat.device)
        for inputs, targets in self.batches:
            outputs = self.model(inputs)
            sums[0] += self._criterion(outputs, targets)
            if self._score is not None:
                sums[1] += self._score(outputs, targets)
        loss, hits = (sums / self.samples).tolist()
        return Value(loss, 100 * hits if self._score is not None else float("nan"))


def _refuse_jit(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"{name or 'the model'!r} was compiled by torch.jit, where weights cannot be moved and norm layers not be seen: pass the "
                "model as it was before torch.jit.script or torch.jit.trace"
            )


def _arranged(inputs: Tensor, device: torch.device, channels_last: bool) -> Tensor:
    inputs = inputs.to(device)
    return inputs.contiguous(memory_format=torch.channels_last) if channels_last and inputs.ndim == 4 else inputs
