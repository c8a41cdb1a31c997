"""Stochastic weight averaging as a procedure over any inner loop: SWA, and its folds (DSWA, TSWA, n-fold SWA)."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from lookaround.averaging.model_average import Point
from lookaround.averaging.rules import uniform
from lookaround.averaging.running import RunningAverage
from lookaround.averaging.states import require_count, require_keys, require_settings
from lookaround.buffers import Policy


class FoldedSWA:
    """SWA in ``folds`` equal parts, each starting from the average of the one before (Guo et al. 2022, algorithms 1–3).

    One fold is SWA, two are Double SWA, three Triple SWA. All take the same number of iterations. Call :meth:`step`
    once an iteration: after each step of the inner optimizer, or after each pass over the branches of a Lookaround
    (after its ``around()`` loop, or once in d calls of its ``step()``). Every ``cycle`` iterations of a fold it takes
    a sample; at the fold's end it writes the mean of the fold's samples into the model, from where the next fold goes
    on. After the last fold the model holds the result. Iterations after a fold's last full cycle are made but not
    sampled, as in algorithm 1.

    The inner optimizer's state (momentum) goes on across folds; the paper trains without any. For a learning rate that
    starts a new cycle with each sample, and with each fold, see :class:`~lookaround.averaging.CyclicalLR`.

    Args:
        model: The model, wrapped or not.
        iterations: All iterations n of the procedure, over all folds; a multiple of ``folds``.
        cycle: The cycle length c, at most ``iterations / folds``.
        folds: How many SWA runs follow one another.
        point: Makes a context in which the model holds the point to sample, as in
            :class:`~lookaround.averaging.RunningAverage`: by default the average and not the branch that the model holds inside a
            Lookahead or Lookaround run.
        restart: Called after the average was written into the model, for an optimizer that keeps weights of its own and must
            take the new ones over: by default ``restart()`` of the Lookahead or Lookaround that holds them. To re-estimate norm
            statistics at a fold's end there, pass a function that does that first and then calls ``optimizer.restart()``: a
            Lookaround with ``model=`` gives the model's buffers to all branches.
        buffers: Policies for buffers, as in :class:`~lookaround.averaging.RunningAverage`.
        average_frozen: Average parameters that require no gradient, too.
        offload: Keep the average in host memory.

    Raises:
        ValueError: ``iterations`` is not a positive multiple of ``folds``, or ``cycle`` does not fit a fold.
        TypeError: One of them is no integer, or ``point`` is a context manager instead of what makes one.

    >>> from torch import nn
    >>> from lookaround.averaging import FoldedSWA
    >>> model = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.zeros_(model.weight)
    >>> swa = FoldedSWA(model, iterations=8, cycle=2, folds=2)
    >>> for _ in range(8):
    ...     _ = nn.init.constant_(model.weight, model.weight.item() + 1)  # a step
    ...     ended = swa.step()
    >>> model.weight.item()  # mean(2, 4) = 3; mean(3 + 2, 3 + 4) = 6
    6.0
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        iterations: int,
        cycle: int,
        folds: int = 1,
        point: Point | None = None,
        restart: Callable[[], object] | None = None,
        buffers: Mapping[str, Policy] | None = None,
        average_frozen: bool = False,
        offload: bool = False,
    ) -> None:
        for name, value in (("iterations", iterations), ("cycle", cycle), ("folds", folds)):
            if not isinstance(value, int):
                raise TypeError(f"{name} must be an integer, got {value!r}")
        if folds < 1 or iterations < 1 or iterations % folds:
            raise ValueError(
                f"iterations must be a positive multiple of folds, got {iterations} iterations in {folds} folds"
            )
        if not 1 <= cycle <= iterations // folds:
            raise ValueError(f"cycle must be from 1 to the {iterations // folds} iterations of a fold, got {cycle}")
        self.iterations, self.cycle, self.folds = iterations, cycle, folds
        self._iteration = 0
        self._restart = restart
        self._average = RunningAverage(
            model, uniform(), point=point, buffers=buffers, average_frozen=average_frozen, offload=offload
        )

    @property
    def iteration(self) -> int:
        """Iterations made so far, over all folds."""
        return self._iteration

    @property
    def fold(self) -> int:
        """The number of finished folds."""
        return self._iteration // (self.iterations // self.folds)

    @property
    def average(self) -> RunningAverage:
        """The samples of the current fold; right after a fold's end, those of the fold that has ended."""
        return self._average

    def step(self) -> bool:
        """Count one iteration, sample if a cycle is over, and end the fold if it is over.

        Returns:
            Whether a fold has just ended, so that the model now holds its average: the time to re-estimate norm
            statistics.

        Raises:
            ValueError: All iterations have been made already, or the model holds an average to look at (``average.averaged()``, or the
                optimizer's), or it is called in the body of a loop over ``optimizer.around()``, or the model is no longer made as it was.
                Nothing is changed then.
        """
        self._average._require_writable("step()")
        if self._iteration == self.iterations:
            raise ValueError(f"all {self.iterations} iterations have been made; the model holds the result")
        length = self.iterations // self.folds
        within = self._iteration % length + 1
        if within % self.cycle == 0:
            self._average._add(afresh=within == 1)
        elif within == 1:
            self._average.reset()
        self._iteration += 1
        if within == length:
            self._average.write_back(self._restart)
        return within == length

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on bit for bit. Save the model and the inner optimizer beside it."""
        return {**self._settings(), "iteration": self._iteration, "average": self._average.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load :meth:`state_dict`'s result.

        Raises:
            ValueError: It does not fit the model, or is of a procedure of other iterations, cycle or folds. Nothing is
                changed then.
        """
        require_keys(state, ("iteration", "average", *self._settings()), "FoldedSWA")
        require_settings(state, self._settings(), "procedure")
        if not 0 <= require_count(state["iteration"], "iteration") <= self.iterations:
            raise ValueError(f"the state is damaged: it is of iteration {state['iteration']} of {self.iterations}")
        self._average.load_state_dict(state["average"])
        self._iteration = int(state["iteration"])

    def _settings(self) -> dict[str, int]:
        return {"iterations": self.iterations, "cycle": self.cycle, "folds": self.folds}
