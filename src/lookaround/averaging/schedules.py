"""The learning-rate schedules of SWA: high constant, cyclical, and that of the training before it."""

from abc import abstractmethod
from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lookaround.averaging.states import require_whole

Rate = float | Sequence[float]


def _per_group(rate: Rate, name: str, optimizer: Optimizer) -> list[float]:
    groups = len(optimizer.param_groups)
    rates = [float(r) for r in rate] if isinstance(rate, Sequence) else [float(rate)] * groups
    if len(rates) != groups:
        raise ValueError(f"{name} must be one number or {groups}, one for each parameter group; got {len(rates)}")
    if not all(r >= 0 for r in rates):
        raise ValueError(f"{name} must not be negative, got {rate}")
    return rates


class _BetweenLR(LRScheduler):
    """A learning rate between a high and a low one that depends on the step count alone, and so resumes exactly."""

    def __init__(self, optimizer: Optimizer, high: Rate, low: Rate, last_epoch: int) -> None:
        self.high = _per_group(high, "high", optimizer)
        self.low = _per_group(low, "low", optimizer)
        super().__init__(optimizer, last_epoch)

    @abstractmethod
    def _share(self) -> float:
        """How far the rate is from the high one (0) to the low one (1), after ``last_epoch`` steps."""

    def get_lr(self) -> list[float]:  # type: ignore[override]  # torch allows tensors too
        """The learning rate of each parameter group at the current step."""
        t = self._share()
        return [(1 - t) * high + t * low for high, low in zip(self.high, self.low, strict=True)]


class HighConstantLR(_BetweenLR):
    """One high learning rate for the whole of an SWA phase, whatever the rate before it was.

    Args:
        optimizer: The optimizer, or a wrapper of one.
        lr: The rate, for all parameter groups or one for each.
        last_epoch: The steps made before, -1 for none.

    Raises:
        ValueError: The rate is negative, or there are not as many as groups.

    >>> from lookaround.averaging import HighConstantLR
    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.5)
    >>> HighConstantLR(optimizer, 0.05).get_last_lr()
    [0.05]

    References: the high constant schedule of Izmailov et al. 2018; Guo et al. 2022, section 2.
    """

    def __init__(self, optimizer: Optimizer, lr: Rate, *, last_epoch: int = -1) -> None:
        super().__init__(optimizer, lr, lr, last_epoch)

    def _share(self) -> float:
        return 0.0


class CyclicalLR(_BetweenLR):
    """A linear decrease within each cycle of ``cycle`` steps, from near ``high`` to ``low`` at its last step.

    Iteration i = 1, 2, … of the phase has rate (1 - t) high + t low with t = ((i - 1) mod c + 1) / c, so that SWA
    samples every c steps, at the lowest rate. Call ``step()`` after each step of the optimizer. With ``fold``, i counts
    within each fold of so many steps, as the samples of :class:`~lookaround.averaging.FoldedSWA` do.

    Args:
        optimizer: The optimizer, or a wrapper of one.
        high: α_1, the rate a cycle starts from, for all parameter groups or one for each.
        low: α_2, the rate at a cycle's last step.
        cycle: The cycle length c in steps.
        fold: The steps of a fold, if there are several and ``cycle`` does not divide it; None for one.
        last_epoch: The steps made before, -1 for none.

    Raises:
        ValueError: ``cycle`` is below 1, ``fold`` below ``cycle``, one of them no whole number, a rate is negative, or there are not
            as many rates as groups.

    >>> from lookaround.averaging import CyclicalLR
    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.5)
    >>> scheduler = CyclicalLR(optimizer, high=1.0, low=0.0, cycle=4)
    >>> rates = []
    >>> for _ in range(5):
    ...     rates += scheduler.get_last_lr()
    ...     optimizer.step(); scheduler.step()
    >>> rates
    [0.75, 0.5, 0.25, 0.0, 0.75]

    References: Izmailov et al. 2018, section 3.1; Guo et al. 2022, section 5.
    """

    def __init__(
        self, optimizer: Optimizer, high: Rate, low: Rate, *, cycle: int, fold: int | None = None, last_epoch: int = -1
    ) -> None:
        require_whole(cycle, "cycle")
        if fold is not None:
            require_whole(fold, "fold")
            if fold < cycle:
                raise ValueError(f"fold must be at least a cycle of {cycle} steps, got {fold}")
        self.cycle, self.fold = cycle, fold
        super().__init__(optimizer, high, low, last_epoch)

    def _share(self) -> float:
        within = self.last_epoch if self.fold is None else self.last_epoch % self.fold
        return (within % self.cycle + 1) / self.cycle


class PretrainingLR(_BetweenLR):
    """The schedule before SWA: ``high`` for the first half, a linear decrease, ``low`` at the end.

    Args:
        optimizer: The optimizer, or a wrapper of one.
        high: C_h, for all parameter groups or one for each.
        low: C_l.
        total: The steps of the whole schedule, in the unit in which ``step()`` is called.
        decrease_from: The share of ``total`` after which the decrease begins.
        decrease_to: The share of ``total`` after which ``low`` is reached.
        last_epoch: The steps made before, -1 for none.

    Raises:
        ValueError: ``total`` is below 1 or no whole number, the shares are not in order within [0, 1], a rate is negative, or there are
            not as many rates as groups.

    >>> from lookaround.averaging import PretrainingLR
    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.5)
    >>> scheduler = PretrainingLR(optimizer, high=0.05, low=0.01, total=10)
    >>> rates = []
    >>> for _ in range(10):
    ...     rates += scheduler.get_last_lr()
    ...     optimizer.step(); scheduler.step()
    >>> [round(r, 3) for r in rates]
    [0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 0.04, 0.03, 0.02, 0.01]

    References: Guo et al. 2022, section 5 and Figure 9 (C_h = 0.05, C_l = 0.01, 160 epochs), which takes it from
    Izmailov et al. 2018, where the decrease lasts from 50 % to 90 % of the steps.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        high: Rate,
        low: Rate,
        *,
        total: int,
        decrease_from: float = 0.5,
        decrease_to: float = 0.9,
        last_epoch: int = -1,
    ) -> None:
        require_whole(total, "total")
        if not 0 <= decrease_from <= decrease_to <= 1:
            raise ValueError(
                f"decrease_from and decrease_to must be in order in [0, 1], got {decrease_from}, {decrease_to}"
            )
        self.total, self.decrease_from, self.decrease_to = total, decrease_from, decrease_to
        super().__init__(optimizer, high, low, last_epoch)

    def _share(self) -> float:
        done = self.last_epoch / self.total
        if done <= self.decrease_from:
            return 0.0
        if done >= self.decrease_to:
            return 1.0
        return (done - self.decrease_from) / (self.decrease_to - self.decrease_from)
