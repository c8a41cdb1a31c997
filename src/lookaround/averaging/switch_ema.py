"""Switch EMA: an exponential average that the training goes on from, once an epoch."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from lookaround.averaging.model_average import Point
from lookaround.averaging.rules import Rule, exponential
from lookaround.averaging.running import RunningAverage
from lookaround.averaging.states import require_count, require_keys, require_settings
from lookaround.buffers import Policy


class SwitchEMA:
    """Switch EMA (Li et al. 2024): a running average of every step that is written into the model once an epoch.

    Call :meth:`step` after each step of the inner optimizer, or after each pass over the branches of a Lookaround. Every
    call is a point of the average; every ``every``-th one then writes the average into the model, and the training goes on
    from there. The average itself and the inner optimizer's state (momentum) go on as they were, as in the paper.

    Between two switches :attr:`average` shows, exports and saves the average as any other.

    Args:
        model: The model, wrapped or not.
        every: The steps between two switches, at least 1: the length of an epoch, ``len(loader)``.
        rule: How the points are weighted; ``exponential(0.999)`` by default, as in the paper.
        point: Makes a context in which the model holds the point to sample, as in
            :class:`~lookaround.averaging.RunningAverage`: by default the average and not the branch that the model holds inside a
            Lookahead or Lookaround run.
        restart: Called after the average was written into the model, for an optimizer that keeps weights of its own and must
            take the new ones over: by default ``restart()`` of the Lookahead or Lookaround that holds them.
        buffers: Policies for buffers, as in :class:`~lookaround.averaging.RunningAverage`.
        average_frozen: Average parameters that require no gradient, too.
        offload: Keep the average in host memory.

    Raises:
        ValueError: ``every`` is below 1 or no integer.
        TypeError: ``point`` is a context manager instead of what makes one.

    >>> from torch import nn
    >>> from lookaround.averaging import SwitchEMA, exponential
    >>> model = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.zeros_(model.weight)
    >>> switch = SwitchEMA(model, every=2, rule=exponential(0.5))
    >>> for _ in range(4):
    ...     _ = nn.init.constant_(model.weight, model.weight.item() + 1)  # a step
    ...     switched = switch.step()
    ...     print(model.weight.item(), switched)
    1.0 False
    1.5 True
    2.5 False
    2.75 True

    References: Li et al. 2024 (arXiv 2402.09240), "Switch EMA: A Free Lunch for Better Flatness and Sharpness".
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        every: int,
        rule: Rule | None = None,
        point: Point | None = None,
        restart: Callable[[], object] | None = None,
        buffers: Mapping[str, Policy] | None = None,
        average_frozen: bool = False,
        offload: bool = False,
    ) -> None:
        if not isinstance(every, int) or every < 1:
            raise ValueError(f"every must be a whole number of steps of at least 1, got {every!r}")
        self.every = every
        self._restart = restart
        self._average = RunningAverage(
            model,
            exponential(0.999) if rule is None else rule,
            point=point,
            buffers=buffers,
            average_frozen=average_frozen,
            offload=offload,
        )

    @property
    def average(self) -> RunningAverage:
        """The running average, over all steps."""
        return self._average

    def step(self) -> bool:
        """Add the model's weights as the next point, and write the average into the model if an epoch is over.

        Returns:
            Whether it has been written, so that the model now holds the average.

        Raises:
            ValueError: The model holds an average to look at (``average.averaged()``, or the optimizer's), or it is called in the body of
                a loop over ``optimizer.around()``, or the model is no longer made as it was. Nothing is changed then.
        """
        self._average._require_writable("step()")
        self._average.update()
        if self._average.count % self.every:
            return False
        self._average.write_back(self._restart)
        return True

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on bit for bit. Save the model and the inner optimizer beside it."""
        return {"every": self.every, "average": self._average.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load :meth:`state_dict`'s result.

        Raises:
            ValueError: It does not fit the model, or is of epochs of another length. Nothing is changed then.
        """
        require_keys(state, ("every", "average"), "SwitchEMA")
        require_count(state["every"], "every")
        require_settings(state, {"every": self.every}, "SwitchEMA")
        self._average.load_state_dict(state["average"])
