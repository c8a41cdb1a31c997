"""What happens inside rounds: every branch's and the average's test accuracy step by step, recorded from a live run."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from lookaround.landscape.files import write_csv
from lookaround.landscape.probe import Batch, Criterion, NormStats, Probe, Value, correct, cross_entropy
from lookaround.landscape.weights import flatten, unwrap
from lookaround.tensors import dot


class Rounds(Protocol):
    """What is needed of a `Lookahead` or a `Lookaround`."""

    name: Any
    inner: torch.optim.Optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """With k, α and the place in the round."""

    @property
    def state(self) -> Any:
        """With the idle branches."""


@dataclass(frozen=True)
class Record:
    """One step of all branches of a round.

    Attributes:
        update: steps of every branch since the recording began.
        round: of the run, from 0.
        step: of the round, from 1 to k; 0 is the common start, where all branches are the last average.
        average: loss and accuracy of the weights an average step at this moment would give (where α is adaptive, with the
            last average's α: the next one is not chosen yet).
        branches: of every branch.
        spread: root mean square of the branches' distances to their mean.
        angles: in degrees, between every two branches' displacements from the round's start, in the order (0, 1), (0, 2),
            …, (1, 2), …; NaN at the start.
        barrier: the highest loss barrier on the lines between two branches; NaN where none was asked for.

    Source: Zhang et al. 2023 (Lookaround), Figure 6; Zhang et al. 2019 (Lookahead), Figure 10; spread and angles are
    ours.
    """

    update: int
    round: int
    step: int
    average: Value
    branches: tuple[Value, ...]
    spread: float
    angles: tuple[float, ...]
    barrier: float


@dataclass(frozen=True, eq=False)
class _Point:
    """Weights as one vector, and the buffers that go with them."""

    weights: Tensor
    buffers: dict[str, Tensor]

    def lerp(self, other: _Point, weight: float | Tensor) -> _Point:
        """self + weight (other - self); of buffers, the floating-point ones."""
        share = weight if isinstance(weight, float) else float(weight.flatten()[0])
        moved = {
            name: torch.lerp(mine, other.buffers[name], share) if mine.is_floating_point() else mine
            for name, mine in self.buffers.items()
        }
        return _Point(torch.lerp(self.weights, other.weights, weight), moved)


class Recorder:
    """Records a `Lookahead` or `Lookaround` run from the inside, through hooks on the inner optimizer's step.

    Nothing of the run changes: points are measured in a copy of the model. Recording begins with the next round, and
    wherever the training loop averages, each round is seen before its average step (step k) and after it (step 0).

    Cost at each step of all branches, in evaluations of ``batches`` (doubled by re-estimated norm statistics): d + 1 for
    d > 1 branches, 2 for one, and ``barrier_points`` · d (d - 1) / 2 for the barrier; at each round's start one more.
    Memory: a copy of the model, d + 3 weight vectors while a step is recorded and one in between; with
    ``keep_weights`` one more a record, on the CPU.

    Args:
        optimizer: the live `Lookahead` or `Lookaround`, whose branches are all in this process.
        model: the network it trains. Buffers are each branch's own if the optimizer was given the model, and the common
            ones if not.
        batches: (inputs, targets) pairs to measure on, usually of the test set.
        barrier_points: inner points of the lines between every two branches on which the barrier is measured, at equal
            distances; 0 for no barrier.
        keep_weights: keep every record's average, to draw the trajectory on a plane.
        criterion: see `Probe`; so for the rest. ``norm_stats="fixed"`` takes each branch's running statistics as the run
            has them, and for the average what the average step would make of them.

    Raises:
        TypeError: ``optimizer`` has no rounds.
        ValueError: ``barrier_points`` is negative; see also `Probe`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lookaround.landscape import Recorder
        >>> from lookaround import Lookahead
        >>> model = nn.Linear(1, 2)
        >>> optimizer = Lookahead(torch.optim.SGD(model.parameters(), lr=0.1), k=2)
        >>> data = [(torch.randn(8, 1), torch.arange(8) % 2)]
        >>> with Recorder(optimizer, model, data) as recorder:
        ...     for _ in range(4):
        ...         torch.nn.functional.cross_entropy(model(data[0][0]), data[0][1]).backward()
        ...         optimizer.step()
        >>> [(record.round, record.step) for record in recorder.records]
        [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]

    Source: Zhang et al. 2023 (Lookaround), Figure 6; Zhang et al. 2019 (Lookahead), Figure 10.
    """

    def __init__(
        self,
        optimizer: Rounds,
        model: nn.Module,
        batches: Iterable[Batch],
        *,
        barrier_points: int = 0,
        keep_weights: bool = False,
        criterion: Criterion = cross_entropy,
        score: Criterion | None = correct,
        norm_stats: NormStats = "reestimate",
        norm_batches: Iterable[Tensor] | None = None,
        channels_last: bool = True,
    ) -> None:
        if not hasattr(optimizer, "inner") or f"{getattr(optimizer, 'name', '')}_step" not in optimizer.param_groups[0]:
            raise TypeError(f"only Lookahead and Lookaround have rounds to record, got {type(optimizer).__name__}")
        if barrier_points < 0:
            raise ValueError(f"barrier_points is at least 0, got {barrier_points}")
        self.records: list[Record] = []
        self.weights: list[Tensor] = []
        self._optimizer = optimizer
        self._model = unwrap(model)
        self._barrier_points, self._keep_weights = barrier_points, keep_weights
        self._probe = Probe(
            model,
            batches,
            criterion=criterion,
            score=score,
            norm_stats=norm_stats,
            norm_batches=norm_batches,
            channels_last=channels_last,
        )
        self._start: _Point | None = None
        self._updates = 0
        inner = optimizer.inner
        self._hooks = [inner.register_step_pre_hook(self._before), inner.register_step_post_hook(self._after)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop recording; the records stay."""
        for hook in self._hooks:
            hook.remove()

    @property
    def norm_note(self) -> str:
        """How norm statistics came about, in words for a figure."""
        return self._probe.norm_note.replace("fixed", "as the run keeps them")

    def _get(self, setting: str) -> int:
        return int(self._optimizer.param_groups[0][f"{self._optimizer.name}_{setting}"])

    def _before(self, *_: Any) -> None:
        """Before the first step of a round: all branches are at the last average."""
        if any(self._get(counter) for counter in ("start", "step", "branch", "taken", "pass")):
            return
        self._start = self._point(0)
        if self.records and self.records[-1].step == 0:
            self.records.pop()
        value = self._measure(self._start)
        branches = self._get("branches")
        angles = (math.nan,) * (branches * (branches - 1) // 2)
        barrier = 0.0 if self._barrier_points else math.nan
        self._add(
            self._start, Record(self._updates, self._get("round"), 0, value, (value,) * branches, 0.0, angles, barrier)
        )

    def _after(self, *_: Any) -> None:
        """After a step of the last branch, once it has made as many as the others."""
        step = self._get("taken") + 1
        if self._start is None or self._get("branch") + 1 < self._get("branches") or step < self._get("pass"):
            return
        self._updates += 1
        points = [self._point(branch) for branch in range(self._get("branches"))]
        mean = reduce(lambda done, pair: done.lerp(pair[1], 1 / pair[0]), enumerate(points[1:], start=2), points[0])
        average = self._start.lerp(mean, self._alpha())
        values = tuple(self._measure(point) for point in points)
        same = len(points) == 1 and torch.equal(average.weights, points[0].weights)
        record = Record(
            self._updates,
            self._get("round"),
            self._get("step") + step,
            values[0] if same else self._measure(average),
            values,
            _spread(points, mean),
            tuple(_angle(a, b, self._start) for a, b in itertools.combinations(points, 2)),
            self._barrier(points, values),
        )
        self._add(average, record)

    def _add(self, average: _Point, record: Record) -> None:
        self.records.append(record)
        if self._keep_weights:
            del self.weights[len(self.records) - 1 :]
            self.weights.append(average.weights.cpu())

    def _point(self, branch: int) -> _Point:
        """A branch's weights and buffers, out of the model or from where it waits."""
        state, name = self._optimizer.state, self._optimizer.name
        head = f"{name}.branch.{(branch - self._get('branch')) % self._get('branches')}."
        trained = {parameter for group in self._optimizer.param_groups for parameter in group["params"]}
        entries = {p: state.get(p, {}) if p in trained else {} for p in self._model.parameters()}
        weights = flatten([entry.get(f"{head}weights", p).to(p.device) for p, entry in entries.items()])
        buffers = {key: b.detach().clone() for key, b in self._model.named_buffers()}
        own = f"{head}buffers."
        for entry in entries.values():
            found = {key.removeprefix(own): value for key, value in entry.items() if key.startswith(own)}
            buffers.update({key.removeprefix("module."): value for key, value in found.items()})
        return _Point(weights, {key: b.to(weights.device) for key, b in buffers.items()})

    def _alpha(self) -> float | Tensor:
        """α of every weight: a number where all groups have one."""
        name, groups = self._optimizer.name, self._optimizer.param_groups
        alphas = {p: float(group[f"{name}_alpha"]) for group in groups for p in group["params"]}
        if len(set(alphas.values())) == 1:
            return next(iter(alphas.values()))
        return flatten([torch.full_like(p, alphas.get(p, 1.0)) for p in self._model.parameters()])

    def _measure(self, point: _Point) -> Value:
        self._probe.move_to(point.weights)
        for name, buffer in self._probe.model.named_buffers():
            buffer.copy_(point.buffers[name])
        return self._probe.measure()

    def _barrier(self, points: Sequence[_Point], values: Sequence[Value]) -> float:
        if not self._barrier_points:
            return math.nan
        heights = [0.0]
        for (a, left), (b, right) in itertools.combinations(zip(points, values, strict=True), 2):
            for i in range(1, self._barrier_points + 1):
                t = i / (self._barrier_points + 1)
                heights.append(self._measure(a.lerp(b, t)).loss - (1 - t) * left.loss - t * right.loss)
        return max(heights)

    def save_csv(self, path: str | os.PathLike[str]) -> None:
        """Write one row a record, atomically. Branches are counted from 1, as in figures.

        Raises:
            ValueError: nothing has been recorded.
            OSError: the file cannot be written; what was there is still there.
        """
        if not self.records:
            raise ValueError("nothing has been recorded; recording begins with the round after the recorder was made")
        branches = range(1, len(self.records[0].branches) + 1)
        measured = [f"{who}_{what}" for who in ("average", *(f"branch{b}" for b in branches)) for what in Value._fields]
        angles = [f"angle_{a}_{b}" for a, b in itertools.combinations(branches, 2)]
        header = ["update", "round", "step", *measured, "spread", *angles, "barrier"]
        write_csv(path, header, (_row(record) for record in self.records))


def _row(record: Record) -> list[float]:
    values = [number for value in (record.average, *record.branches) for number in value]
    return [record.update, record.round, record.step, *values, record.spread, *record.angles, record.barrier]


def _spread(points: Sequence[_Point], mean: _Point) -> float:
    squares = [_inner(p.weights - mean.weights, p.weights - mean.weights) for p in points]
    return math.sqrt(sum(squares) / len(points))


def _angle(a: _Point, b: _Point, start: _Point) -> float:
    """In degrees, by the arctangent of |u - v| and |u + v| of unit vectors: exact for small angles too."""
    u, v = a.weights - start.weights, b.weights - start.weights
    lengths = math.sqrt(_inner(u, u)), math.sqrt(_inner(v, v))
    if 0 in lengths:
        return math.nan
    u, v = u / lengths[0], v / lengths[1]
    return math.degrees(2 * math.atan2(math.sqrt(_inner(u - v, u - v)), math.sqrt(_inner(u + v, u + v))))


def _inner(a: Tensor, b: Tensor) -> float:
    return float(dot([a], [b]))
