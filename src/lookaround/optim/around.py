"""The loops over branches, and over minibatches and branches: turns for a training loop's body, which computes a loss and steps."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

from lookaround.optim import gradients
from lookaround.optim.rounds import Rounds

Batch = TypeVar("Batch")


def around(rounds: Rounds, batches: Iterable[Any] | None) -> Iterator[Any]:
    """The turns of a loop that is open from now on: branches, or (minibatch, branch)."""
    rounds.may_go_around()
    walk = rounds.walk = object()
    return _walk(rounds, walk, _turns(rounds) if batches is None else _turns_of(rounds, batches))


def _walk(rounds: Rounds, walk: object, turns: Iterator[Any]) -> Iterator[Any]:
    """Turns of branches, as long as their bodies do not end the round or load a checkpoint."""
    try:
        for turn in turns:
            yield turn
            if rounds.walk is not walk:
                return
    except GeneratorExit:
        if rounds.walk is walk:
            rounds.walk = None
            _leave(rounds, turns)
        raise
    finally:
        if rounds.walk is walk:
            rounds.walk = None


def _leave(rounds: Rounds, turns: Iterator[Any]) -> None:
    """The loop is left at a turn: nothing is undone if it was the last one, after its step."""
    place = rounds.place
    if rounds.last and place.taken:
        rounds.leaving = True
        next(turns, None)
        rounds.leaving = False
    else:
        rounds.left = bool(place.branch != rounds.branches.local.start or place.taken or rounds.done)


def _turns(rounds: Rounds) -> Iterator[int]:
    """Algorithm 1, the innermost loop: for all branches."""
    local = rounds.branches.local
    # A checkpoint was saved, or an error raised, between a branch's step and the end of its turn.
    if rounds.place.taken:
        over = rounds.resumed and rounds.place.branch + 1 == local.stop
        rounds.turn_ends()
        if over:
            return
    rounds.take_start()
    local = rounds.branches.local
    for branch in range(rounds.place.branch, local.stop):
        before, rounds.last = gradients.seen(rounds.branches.optimizer.param_groups), branch + 1 == local.stop
        yield branch
        if not rounds.place.taken:
            _note_gradient(rounds, before)
        rounds.turn_ends()


def _turns_of(rounds: Rounds, batches: Iterable[Batch]) -> Iterator[tuple[Batch, int]]:
    """Algorithm 1, turned outside in: for all rounds, for all branches, for k steps."""
    source = iter(batches)
    if rounds.place.taken and not rounds.done:
        rounds.turn_ends()
    while not rounds.leaving and (block := list(islice(source, rounds.block_size()))):
        rounds.take_start()
        for branch in range(rounds.place.branch, rounds.branches.local.stop):
            rounds.block = len(block)
            yield from _turn_over(rounds, block, branch)
            rounds.place.most = rounds.made.bit_count()
            rounds.turn_ends()
        rounds.block = 0
        rounds.batches += len(block)
        rounds.end_block()


def _turn_over(rounds: Rounds, block: list[Batch], branch: int) -> Iterator[tuple[Batch, int]]:
    """A branch's turn over several minibatches, each with the settings of its place."""
    local, replay = rounds.branches.local, rounds.replay
    first, last = branch == local.start, branch + 1 == local.stop
    for at in range(rounds.done, len(block)):
        groups, ends = rounds.branches.optimizer.param_groups, at + 1 == len(block)
        if not first:
            replay.put(groups, at)
        elif not last:
            replay.record(groups, at)
        before = None if rounds.place.taken else gradients.seen(groups)
        rounds.at, rounds.last = at, last and ends
        yield block[at], branch
        if not rounds.place.taken:
            _note_gradient(rounds, before)
        if not first and (ends or replay.holds):
            replay.check(rounds.branches.optimizer.param_groups, branch, ends=ends)
        rounds.done = at + 1
    rounds.at, rounds.done = None, 0
    if first and not last:
        replay.end_of_first(rounds.branches.optimizer.param_groups, len(block))


def _note_gradient(rounds: Rounds, before: gradients.Seen | None) -> None:
    """Remember the gradient that a turn without a step leaves: it must not be added to another branch's."""
    if len(rounds.branches.local) > 1:
        rounds.stale = gradients.left(rounds.branches.optimizer.param_groups, before) or rounds.stale
