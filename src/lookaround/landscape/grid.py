"""Loss and accuracy on a grid of points: resumable, and split over processes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lookaround.averaging.files import byte_view
from lookaround.landscape.files import write_csv
from lookaround.landscape.geometry import Geometry
from lookaround.landscape.journal import Journal
from lookaround.landscape.probe import Batch, Criterion, NormStats, Probe, Value, correct, cross_entropy

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Grid:
    """What was measured on a plane or a line.

    Attributes:
        xs: coordinates along the first axis.
        ys: along the second; empty on a line.
        loss: mean loss, float64, ``(len(ys), len(xs))`` on a plane and ``(len(xs),)`` on a line.
        accuracy: in percent, of the same shape; NaN where there is no accuracy.
        axes: names of the coordinates.
        norm_note: how norm statistics came about, for the figure.

    Source: the values behind Zhang et al. 2023 (Lookaround), Figures 1 and 7.
    """

    xs: tuple[float, ...]
    ys: tuple[float, ...]
    loss: Tensor
    accuracy: Tensor
    axes: tuple[str, ...]
    norm_note: str

    def save_csv(self, path: str | os.PathLike[str]) -> None:
        """Write one row a point, atomically: its coordinates, loss and accuracy.

        Raises:
            OSError: the file cannot be written; what was there is still there.
        """
        values = zip(self.loss.flatten().tolist(), self.accuracy.flatten().tolist(), strict=True)
        rows = zip(_coordinates(self.xs, self.ys), values, strict=True)
        write_csv(path, [*self.axes, "loss", "accuracy"], ([*place, *value] for place, value in rows))

    def barrier(self) -> float:
        """The loss barrier of a line: how far the loss rises above the straight line between its two ends, at least 0.

        The ends are t = 0 and t = 1, which must be among the points; points beyond them do not count.

        Raises:
            ValueError: this is a plane, or an end is missing.

        Source: Frankle et al. 2020, with the interpolated end values of Entezari et al. 2022.
        """
        if self.ys or not {0.0, 1.0} <= set(self.xs):
            raise ValueError("a barrier is read off a line with points at 0 and 1; add them to xs")
        loss: dict[float, float] = dict(zip(self.xs, self.loss.tolist(), strict=True))
        return max(value - (1 - t) * loss[0.0] - t * loss[1.0] for t, value in loss.items() if 0 <= t <= 1)


def evaluate_grid(
    model: nn.Module,
    geometry: Geometry,
    xs: Iterable[float],
    ys: Iterable[float] = (),
    *,
    batches: Iterable[Batch],
    criterion: Criterion = cross_entropy,
    score: Criterion | None = correct,
    norm_stats: NormStats = "reestimate",
    norm_batches: Iterable[Tensor] | None = None,
    channels_last: bool = True,
    store: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Grid:
    """Measure loss and accuracy of a network on a grid in weight space.

    A point is moved to by one matrix-vector product over the geometry's rows, in a copy of the model: ``model`` itself is
    never changed. Where ``torch.distributed`` is initialized, the processes of the default group share the points, make
    this call with equal arguments, and all return the whole grid.

    Points are measured one at a time: on a CPU a batched forward pass over several weight vectors costs several times as
    much a point (``benchmarks/landscape.py`` measures it).

    Args:
        model: a network in any mode; gives architecture, device, dtype and (with fixed statistics) buffers.
        geometry: a `Plane`, `RandomPlane` or `Line` of the model's weights.
        xs: coordinates along the first axis.
        ys: along the second axis; none on a line.
        batches: (inputs, targets) pairs; they are kept on the model's device.
        criterion: the sum of a batch's losses, from outputs and targets.
        score: the number of hits in a batch, or None.
        norm_stats: ``"reestimate"`` or ``"fixed"``, see `Probe`.
        norm_batches: inputs to re-estimate norm statistics on; without them those of ``batches``.
        channels_last: see `Probe`.
        store: a file in which each point is kept as soon as it is measured. A call with the same arguments goes on from
            there and measures no point again.
        progress: called with the numbers of finished and of all points after each of the first process's points; the
            others are taken to be as far.

    Raises:
        ValueError: a plane without ``ys`` or a line with them, no points, a store of another grid, or see `Probe`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lookaround.landscape import evaluate_grid
        >>> from lookaround.landscape import Line
        >>> line = Line.between(torch.zeros(1), torch.ones(1))
        >>> data = [(torch.ones(1, 1), torch.tensor([2.0]))]
        >>> square = lambda outputs, targets: (outputs[:, 0] - targets).square().sum()
        >>> model = nn.Linear(1, 1, bias=False)
        >>> evaluate_grid(model, line, [0, 1, 3], batches=data, criterion=square, score=None).loss
        tensor([4., 1., 1.], dtype=torch.float64)

    Source: the surfaces of Garipov et al. 2018 and Zhang et al. 2023 (Lookaround), Figures 1 and 7; the norm
    statistics of Izmailov et al. 2018.
    """
    xs, ys = tuple(map(float, xs)), tuple(map(float, ys))
    points = _coordinates(xs, ys)
    if not points or len(points[0]) != len(geometry.axes):
        raise ValueError(
            f"this geometry takes {len(geometry.axes)} non-empty lists of coordinates, got xs={xs}, ys={ys}"
        )
    probe = Probe(
        model,
        batches,
        criterion=criterion,
        score=score,
        norm_stats=norm_stats,
        norm_batches=norm_batches,
        channels_last=channels_last,
    )
    probe.span(geometry.rows)
    group = _Group()
    journal = None if store is None else Journal(store, _fingerprint(probe, geometry, points), group.rank)
    values = _measure_all(probe, geometry, points, journal, progress or _silent, group)
    found = torch.tensor([values[i] for i in range(len(points))], dtype=torch.float64).T
    shape = (len(ys), len(xs)) if ys else (len(xs),)
    return Grid(xs, ys, found[0].reshape(shape), found[1].reshape(shape), geometry.axes, probe.norm_note)


def _measure_all(
    probe: Probe,
    geometry: Geometry,
    points: Sequence[Sequence[float]],
    journal: Journal | None,
    progress: Progress,
    group: _Group,
) -> dict[int, Value]:
    """The values at all points: those in the journal, and those this process and the others measure now."""
    known = group.from_first(journal.load if journal else dict)
    if journal:
        journal.begin()
    share = [i for i in range(len(points)) if i not in known][group.rank :: group.size]
    finished = len(known)
    for done, index in enumerate(share, start=1):
        probe.move(geometry.weights(*points[index]))
        known[index] = probe.measure()
        if journal:
            journal.append(index, known[index])
        if group.rank == 0:
            progress(min(finished + done * group.size, len(points)), len(points))
    values = group.union(known)
    if journal and group.rank == 0 and group.size > 1:
        journal.merge(values)
    return values


def _coordinates(xs: Sequence[float], ys: Sequence[float]) -> list[tuple[float, ...]]:
    return [(x, y) for y in ys for x in xs] if ys else [(x,) for x in xs]


def _silent(done: int, total: int) -> None:
    """No progress is shown."""


class _Group:
    """The processes that share a grid: those of the default process group, or this one alone."""

    def __init__(self) -> None:
        self.together = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.rank = torch.distributed.get_rank() if self.together else 0
        self.size = torch.distributed.get_world_size() if self.together else 1

    def from_first(self, read: Callable[[], dict[int, Value]]) -> dict[int, Value]:
        """What the first process reads; its error on all of them if it fails."""
        if not self.together:
            return read()
        message: list[Any] = [None]
        if self.rank == 0:
            try:
                message = [read()]
            except (OSError, ValueError) as error:
                message = [error]
        torch.distributed.broadcast_object_list(message)
        if isinstance(message[0], Exception):
            raise message[0]
        return dict(message[0])

    def union(self, values: Mapping[int, Value]) -> dict[int, Value]:
        """The points of all processes."""
        if not self.together:
            return dict(values)
        parts: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(parts, dict(values))
        return {index: value for part in parts for index, value in part.items()}


def _fingerprint(probe: Probe, geometry: Geometry, points: Sequence[Sequence[float]]) -> str:
    """A hash of everything the values on a grid depend on."""
    described = [type(geometry).__name__, str(points), probe.describe(), str(probe.model)]
    digest = hashlib.sha256("\n".join(described).encode())
    for tensor in [geometry.rows, *probe.tensors()]:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        on_cpu = tensor.detach().cpu().contiguous()  # byte_view does not keep it alive
        digest.update(byte_view(on_cpu))
    return digest.hexdigest()
