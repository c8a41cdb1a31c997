"""SWAD: dense averaging over a window that the validation loss opens and closes."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lookaround import tensors
from lookaround.averaging.model_average import ModelAverage, Point
from lookaround.averaging.states import require_count, require_keys, require_list, require_number, require_settings
from lookaround.buffers import Policy


@dataclass
class _Segment:
    """The mean of the points of one or more stretches between evaluations."""

    points: int = 0
    loss: float = 0.0
    mean: list[Tensor] = field(default_factory=list)

    def absorb(self, later: "_Segment") -> None:
        """Take in the points of a later segment."""
        if later.points == 0:
            return
        if self.points == 0:
            self.mean, later.mean = later.mean, self.mean
        else:
            tensors.lerp_each_([self.mean], later.mean, [later.points / (self.points + later.points)])
        self.points += later.points
        later.points = 0


def _limit(losses: list[float], rate: float) -> float:
    """How high the loss may rise above the mean of ``losses``, the first of which is the lowest.

    The mean is taken of the differences, so that it is no lower than the lowest, and equal losses have themselves for mean.

    >>> from lookaround.averaging.swad import _limit
    >>> _limit([0.1, 0.1, 0.1], 1), _limit([-2.0, -2.0], 1.5), _limit([1.0, 3.0], 1.5)
    (0.1, -1.0, 3.0)
    """
    lowest = losses[0]
    if math.isinf(lowest):
        return lowest
    mean = lowest + math.fsum(loss - lowest for loss in losses) / len(losses)
    return (rate if mean >= 0 else 2 - rate) * mean


class SWAD(ModelAverage):
    """Stochastic weight averaging densely (Cha et al. 2021, algorithm 1): the mean of every step's weights in a window.

    Call :meth:`update` after every step and :meth:`evaluated` with the loss on held-out validation data every so many
    steps (never on the test set: the window is chosen with it). With E_i the i-th loss:

    - the window opens at evaluation s, the first whose loss none of the following ``converge`` - 1 falls below; then
      the limit is l = ``rate`` · m with m = mean(E_s, …, E_{s + converge - 1}), and as far above an m below 0, which the
      paper does not have: (2 - ``rate``) · m;
    - it closes at the last evaluation with a loss of at most l, once the ``tolerance`` evaluations after it all exceed
      l; if that does not happen, it lasts until the end. Of the evaluations that opened it, only those after the last
      one within l count.

    The window holds every point after evaluation s - 1 up to the evaluation that closes it. With an evaluation at every
    step this is the paper's window (for ``tolerance`` ≥ ``converge``, where its end is defined).

    The authors' code departs from the paper's algorithm where the two patiences differ: for ``tolerance`` > ``converge``
    it moves the window's start back, over up to ``tolerance`` - ``converge`` evaluations before s while they are within l;
    for ``tolerance`` < ``converge`` it takes the ``converge`` - ``tolerance`` evaluations after s in whatever their loss. Here
    the start is the paper's, whatever the patiences are.

    No points are stored. Before the window opens there is a mean for each of at most ``converge`` stretches between
    evaluations; afterwards two, up to the last evaluation within the limit and since. If the window never opens, the
    average is the last model, and a warning says so.

    Args:
        model: The model, wrapped or not.
        converge: The patience N_s of convergence, in evaluations, at least 1.
        tolerance: The patience N_e of overfitting, in evaluations, at least 1.
        rate: The tolerance rate r, at least 1: how far above the mean at convergence the loss may rise. It is the
            ``tolerance_ratio`` of the authors' code plus 1: its 0.3 is 1.3 here.
        point: Makes a context in which the model holds the point to sample, as in
            :class:`~lookaround.averaging.RunningAverage`.
        buffers: Policies for buffers, as in :class:`~lookaround.averaging.RunningAverage`.
        average_frozen: Average parameters that require no gradient, too.
        offload: Keep the means in host memory.

    Raises:
        ValueError: An argument is outside its range.
        TypeError: ``converge`` or ``tolerance`` is no integer, or ``point`` is a context manager instead of what makes one.

    References: Cha et al. 2021 (arXiv 2102.08604), "SWAD: Domain Generalization by Seeking Flat Minima", algorithm 1.

    >>> from torch import nn
    >>> from lookaround.averaging import SWAD
    >>> model = nn.Linear(1, 1, bias=False)
    >>> swad = SWAD(model, converge=2, tolerance=2, rate=1.5)
    >>> for weight, loss in enumerate([9.0, 2.0, 2.0, 1.0, 2.5, 8.0, 8.0]):
    ...     _ = nn.init.constant_(model.weight, float(weight))
    ...     swad.update()
    ...     swad.evaluated(loss)
    >>> swad.closed, swad.points
    (True, 4)
    >>> with swad.averaged():
    ...     model.weight.item()  # the mean of 1, 2, 3 and 4
    2.5
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        converge: int = 3,
        tolerance: int = 6,
        rate: float = 1.3,
        point: Point | None = None,
        buffers: Mapping[str, Policy] | None = None,
        average_frozen: bool = False,
        offload: bool = False,
    ) -> None:
        for name, value in (("converge", converge), ("tolerance", tolerance)):
            if not value >= 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
            if not isinstance(value, int):
                raise TypeError(f"{name} must be an integer, got {value!r}")
        if not 1 <= rate < math.inf:
            raise ValueError(
                f"rate must be at least 1, got {rate}, and finite; it is the authors' tolerance_ratio + 1: for a tolerance_ratio "
                "of 0.3 pass 1.3"
            )
        super().__init__(model, buffers, offload, average_frozen, point)
        self.converge, self.tolerance, self.rate = converge, tolerance, rate
        # Closed stretches: candidates for the window before it opens; then what is in it for good, and what may be.
        self._segments: list[_Segment] = []
        self._current = _Segment()
        self._limit: float | None = None
        self._above = 0
        self._closed = False

    @property
    def opened(self) -> bool:
        """Whether the window has opened."""
        return self._limit is not None

    @property
    def closed(self) -> bool:
        """Whether the window has closed: later points and evaluations change nothing, and training may stop."""
        return self._closed

    @property
    def limit(self) -> float | None:
        """The loss above which evaluations count towards closing the window; None until it opens."""
        return self._limit

    @property
    def points(self) -> int:
        """The number of points in the window if training ended now; 0 if it has not opened."""
        return sum(s.points for s in self._parts()) if self.opened else 0

    def _parts(self) -> list[_Segment]:
        return self._segments if self._closed else [*self._segments, self._current]

    @torch.no_grad()
    def update(self) -> None:
        """Add the model's weights as the next point.

        Raises:
            ValueError: Called inside :meth:`averaged`, of this average or of another one, or the model is no longer made as it was at
                construction. Nothing is changed then.
        """
        self._forbid_inside("update()")
        if self._closed:
            return
        self._check_model()
        with self._at_point() as sources:
            if not self._current.mean:
                self._current.mean = self._store(sources)
            self._current.points += 1
            tensors.lerp_each_([self._current.mean], sources, [1 / self._current.points])
            self._keep_copied()

    def evaluated(self, loss: float) -> None:
        """Take note of the validation loss of the model as it is now.

        Raises:
            ValueError: There was no point since the last evaluation, the loss is NaN or -inf, or it is called inside
                :meth:`averaged`. Nothing is changed then.
        """
        self._forbid_inside("evaluated()")
        if self._closed:
            return
        loss = float(loss)
        if not loss > -math.inf:
            raise ValueError(f"the validation loss is {loss}; a window cannot be chosen with it")
        if self._current.points == 0:
            raise ValueError("no point since the last evaluation; call update() after every step")
        self._current.loss = loss
        self._reestimated.clear()
        if self._limit is None:
            self._search()
        else:
            self._follow(self._limit)

    def _search(self) -> None:
        """Only the newest lowest evaluation can open the window: whatever came before a lower one cannot."""
        if self._segments and self._current.loss < self._segments[0].loss:
            spare = self._segments[0].mean
            self._segments = [self._current]
            self._current = _Segment(mean=spare)
        else:
            self._segments.append(self._current)
            self._current = _Segment()
        if len(self._segments) == self.converge:
            self._open()

    def _open(self) -> None:
        losses = [s.loss for s in self._segments]
        self._limit = limit = _limit(losses, self.rate)
        last = max(i for i, loss in enumerate(losses) if loss <= limit)
        inside, *rest = self._segments
        pending = _Segment()
        for i, segment in enumerate(rest, start=1):
            (inside if i <= last else pending).absorb(segment)
        self._segments = [inside, pending]
        self._above = len(losses) - 1 - last
        self._close_if_due()

    def _follow(self, limit: float) -> None:
        inside, pending = self._segments
        loss = self._current.loss
        pending.absorb(self._current)
        if loss <= limit:
            inside.absorb(pending)
        self._above = 0 if loss <= limit else self._above + 1
        self._close_if_due()

    def _close_if_due(self) -> None:
        if self._above >= self.tolerance:
            self._closed = True
            self._segments = self._segments[:1]
            self._current = _Segment()

    def _mean(self, which: int) -> list[Tensor]:
        if which:
            raise ValueError(f"there is one average, number 0; got which={which}")
        if not self.opened:
            if not any(s.points for s in (*self._segments, self._current)):
                raise ValueError("there are no points yet; call update() after every step")
            warnings.warn(
                f"the SWAD window never opened: that takes {self.converge} evaluations whose first loss none of the others "
                "falls below; this is the last model, no average"
            )
            return self._last_model()
        parts = [s for s in self._parts() if s.points]
        if len(parts) == 1:
            return parts[0].mean
        total = _Segment(parts[0].points, mean=tensors.clone(parts[0].mean))
        for part in parts[1:]:
            total.absorb(_Segment(part.points, mean=part.mean))
        return total.mean

    def _last_model(self) -> list[Tensor]:
        """The point there would be now; inside a block what the block shows."""
        if self._blocks:
            return self._blocks[0].values[: len(self._averaged_slots)]
        with self._at_point() as sources:
            return tensors.clone(sources)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on bit for bit: numbers and tensors (not copies) in plain containers."""
        self._synchronize()
        segments = [*self._segments, self._current]
        return {
            **self._settings(),
            "limit": self._limit,
            "above": self._above,
            "closed": self._closed,
            "segments": [
                {
                    "points": s.points,
                    "loss": s.loss,
                    "mean": self._named(self._averaged_slots, s.mean) if s.points else {},
                }
                for s in segments
            ],
            **self._shared_state(1),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load :meth:`state_dict`'s result, from any device and in any precision.

        Raises:
            ValueError: Names or shapes differ, the settings do, or it is called inside :meth:`averaged`. Nothing is
                changed then.
        """
        self._check(state)
        *self._segments, self._current = [self._load_segment(saved) for saved in state["segments"]]
        self._load_shared(state)
        self._limit, self._above, self._closed = state["limit"], state["above"], state["closed"]

    def _check(self, state: Mapping[str, Any]) -> None:
        keys = ("limit", "above", "closed", "segments", "copied", "reestimated")
        require_keys(state, (*self._settings(), *keys), "SWAD")
        require_settings(state, self._settings(), "window")
        segments = require_list(state["segments"], "segments")
        if not segments:
            raise ValueError("not a state of SWAD: it has no segments")
        for saved in segments:
            require_keys(saved, ("points", "loss", "mean"), "SWAD's segment")
            require_number(saved["loss"], "loss")
        require_count(state["above"], "above")
        if state["limit"] is not None:
            require_number(state["limit"], "limit")
        self._check_stage(state["limit"] is not None, state["closed"], len(segments))
        self._check_shared(state, sum(require_count(saved["points"], "points") for saved in segments), 1)
        for saved in segments:
            self._check_named(self._averaged_slots if saved["points"] else [], saved["mean"], "the state's mean")

    def _check_stage(self, opened: bool, closed: object, segments: int) -> None:
        """Before the window opens there are its candidates and what follows; then its inside, what may join, what follows."""
        possible = range(1, self.converge + 1) if not opened else [2 if closed else 3]
        if not isinstance(closed, bool) or closed > opened or segments not in possible:
            raise ValueError(
                f"the state is damaged: it cannot be of {segments} segments with opened={opened} and closed={closed}"
            )

    def _settings(self) -> dict[str, float]:
        return {"converge": self.converge, "tolerance": self.tolerance, "rate": self.rate}

    def _load_segment(self, saved: Mapping[str, Any]) -> _Segment:
        mean = self._load_list(self._averaged_slots, saved["mean"]) if saved["points"] else []
        return _Segment(int(saved["points"]), float(saved["loss"]), mean)
