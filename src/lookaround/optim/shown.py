"""The average in the model to look at, while training weights are put aside: `averaged`, `eval` and `train`."""

from collections.abc import Callable, Iterable
from typing import Any
from weakref import ref

from torch import Tensor

from lookaround import showing
from lookaround.optim.kept import TRAINING
from lookaround.optim.rounds import Rounds

Change = Callable[[], Any] | None


class Average(showing.Showing):
    """The average of a wrapper with branches, as others know of it.

    It knows the wrapper weakly: one that is deleted while it shows its average is forgotten at once.
    """

    is_point = True

    def __init__(self, rounds: Rounds, name: str) -> None:
        self._rounds, self._branches, self._name = ref(rounds), rounds.branches, name
        buffers = [b for of in rounds.branches.buffers() for b in of.values()]
        super().__init__([*rounds.branches.params(), *buffers])

    @property
    def _contexts(self) -> int:
        rounds = self._rounds()
        return rounds.contexts if rounds is not None else 0

    @property
    def title(self) -> str:
        return f"{'averaged' if self._contexts else 'eval'}() of a {self._name}"

    @property
    def advice(self) -> str:
        return super().advice if self._contexts else "call its train() first, or delete it if it trains no more"

    def aside(self) -> Iterable[tuple[Tensor, Tensor]]:
        return [pair for kept in self._branches.kept for pair in kept.pairs(TRAINING)]

    def put_back(self) -> None:
        if TRAINING in self._branches.weights:
            self._branches.reshard()
            self._branches.bring_back()


def show(rounds: Rounds, name: str, call: str) -> None:
    """Put the training weights and buffers aside, where a checkpoint finds them, and the average in their place.

    Raises:
        ValueError: The model holds something else to look at, which is named; so also where it does after the average was put there.
    """
    refuse_others(rounds, call)
    if rounds.is_shown:
        return
    branches, moves = rounds.branches, rounds.moves
    rounds.showing = Average(rounds, name)
    showing.show(rounds.showing)
    if rounds.is_common or rounds.start or not moves:
        return
    try:
        branches.reshard()
        branches.follow()
        branches.set_aside()
        rounds.show()
    except BaseException:
        hide(rounds)
        raise


def refuse_others(rounds: Rounds, call: str) -> None:
    """Raise ValueError where the model holds something to look at that is not this wrapper's average."""
    showing.refuse(call, rounds.branches.params(), allowed=rounds.showing)


def hide(rounds: Rounds) -> None:
    """Put the training weights and buffers back, after the last of those who look."""
    if not rounds.is_shown and rounds.showing is not None:
        opened, rounds.showing = rounds.showing, None
        showing.leave(opened)


def evaluate(rounds: Rounds, name: str, change: Change) -> None:
    """The average in the model until `train`, of branches whose inner optimizers are in their own evaluation mode."""
    call = f"eval() of a {name}"
    if rounds.evaluating:
        refuse_others(rounds, call)
        return
    if callable(change):
        refuse_others(rounds, call)
        _refuse_inside(rounds, call)
        _pass_on(rounds, change)
    show(rounds, name, call)
    rounds.evaluating = True


def train(rounds: Rounds, name: str, change: Change) -> None:
    """The training weights after `evaluate`."""
    call = f"train() of a {name}"
    if rounds.evaluating or callable(change):
        refuse_others(rounds, call)
    if rounds.evaluating and callable(change):
        _refuse_inside(rounds, call)
    rounds.evaluating = False
    hide(rounds)
    if callable(change) and not rounds.is_shown:
        _pass_on(rounds, change)


def _refuse_inside(rounds: Rounds, call: str) -> None:
    """Raise ValueError inside `averaged` where branches would have to change their mode, which is not in the average that is shown."""
    if rounds.contexts:
        raise ValueError(
            f"{call} was called inside its averaged(), whose average is of what the inner optimizer held in its mode until then: call it "
            "before or after that block"
        )


def _pass_on(rounds: Rounds, change: Callable[[], Any]) -> None:
    """Call ``train`` or ``eval`` of an inner optimizer that has modes of its own, in every branch."""
    branches = rounds.branches
    current = branches.current
    for branch in [b for b in branches.local if b == current or b in branches.idle]:
        branches.load(branch)
        branches.own_values.before_step(branches.optimizer.param_groups)
        change()
        branches.own_values.after_step(branches.optimizer.param_groups)
    branches.load(current)
