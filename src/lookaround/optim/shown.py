"""The average in the model to look at, while training weights are put aside: `averaged`, `eval` and `train`."""

from collections.abc import Callable
from typing import Any

from lookaround.optim.kept import SLOW, TRAINING
from lookaround.optim.rounds import Rounds


def show(rounds: Rounds) -> None:
    """Put the training weights and buffers aside, where a checkpoint finds them, and the average in their place."""
    branches = rounds.branches
    kept = SLOW in branches.weights or rounds.common.branches > 1
    if rounds.is_shown or rounds.is_common or rounds.start or not kept:
        return
    branches.reshard()
    branches.follow()
    branches.set_aside()
    try:
        rounds.show()
    except BaseException:
        branches.bring_back()
        raise


def hide(rounds: Rounds) -> None:
    """Put the training weights and buffers back, after the last of those who look."""
    if not rounds.is_shown and TRAINING in rounds.branches.weights:
        rounds.branches.reshard()
        rounds.branches.bring_back()


def pass_on(rounds: Rounds, change: Callable[[], Any] | None) -> None:
    """Call ``train`` or ``eval`` of an inner optimizer that has modes of its own, in every branch."""
    if not callable(change) or rounds.shown:
        return
    branches = rounds.branches
    current = branches.current
    for branch in [b for b in branches.local if b == current or b in branches.idle]:
        branches.load(branch)
        branches.own_values.before_step(branches.groups)
        change()
        branches.own_values.after_step(branches.groups)
    branches.load(current)
