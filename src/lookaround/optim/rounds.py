"""The loop all methods share: go around (k inner steps of every branch), then average."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any, ClassVar, TypeVar, overload
from weakref import ref

import torch
from torch import nn
from torch._compile import _disable_dynamo
from torch.optim import Optimizer

from lookaround.holders import hold
from lookaround.optim import momentum
from lookaround.optim.average import Alone, Rows
from lookaround.optim.branches import Branches
from lookaround.optim.cadence import Move, Place, round_ends, turn_ends
from lookaround.optim.checks import (
    Alpha,
    Period,
    check_alpha,
    check_count,
    check_model,
    check_nesting,
    evaluate_alpha,
    evaluate_k,
    moves_nothing,
)
from lookaround.optim.common import Common
from lookaround.optim.kept import SLOW, TRAINING, Kept
from lookaround.optim.outer import MakeOuter, Outer
from lookaround.optim.own import Own
from lookaround.optim.replay import Replay
from lookaround.optim.saved import COUNTERS, Run, Saved
from lookaround.optim.wrapper import Closure, Group, Wrapper, chain
from lookaround.tensors import reshard

Batch = TypeVar("Batch")


class Rounds(Saved):
    """Rounds of k inner steps of d branches, each closed by an average step. `Lookahead` and `Lookaround` are its two faces.

    The paper's loops are nested (for each round, for k steps, for d branches); a training loop calls ``step()`` instead. So the place in
    the nest is kept (`lookaround.optim.cadence`), and with it in the groups, where it is saved and loaded with everything else:

    ``round``, ``step``, ``branch``, ``taken``, ``pass``
        see `Place`; ``pass`` is its ``most``,
    ``at`` and ``batches``
        minibatches of this round that the branch in the model is done with, and all before this round, in ``around(batches)``,
    ``start``
        passes still before the first round, in which all branches share one set of weights; 0 from the first round on,
    ``tensors``
        how much a checkpoint holds: one from which something is missing is refused.
    """

    _checks_finite: ClassVar[bool] = False

    def __init__(
        self,
        inner: Optimizer,
        branches: int,
        k: Period,
        alpha: Alpha,
        inner_state: momentum.Mode,
        model: nn.Module | None = None,
        offload: bool = False,
        start: int = 0,
        outer: MakeOuter | None = None,
        rows: Rows | None = None,
    ) -> None:
        self._check_inner(inner)
        inside = chain(inner)
        branches = check_count("branches", branches)
        start = check_count("start", start, least=0)
        first = {"k": evaluate_k(k, 0), "alpha": evaluate_alpha(alpha, 0)}
        check_nesting(inside)
        check_model(model, inner)
        momentum.check_mode(inner_state, inside[-1])
        self._k = k if callable(k) else None
        self._alpha = alpha if callable(alpha) else None
        moves = Outer(outer, [p for group in inner.param_groups for p in group["params"]]) if outer else None
        super().__init__(
            inner, {**first, "branches": branches, "start": start, **_fresh((rows or Alone(1)).local.start)}
        )
        self._run = self._begin(inside, rows or Alone(branches), inner_state, model, offload, moves)
        hold(self, inside)

    def _begin(
        self,
        inside: list[Optimizer],
        rows: Rows,
        inner_state: momentum.Mode,
        model: nn.Module | None,
        offload: bool,
        outer: Outer | None,
    ) -> Run:
        branches = Branches(inside, self.name, rows.local, model, offload)
        common = Common(
            branches, rows, inner_state, outer, partial(_sets_inside, inside, branches), self._checks_finite
        )
        own = Own(self.name, branches, common, plain=not isinstance(inside[0], Wrapper))
        for key, value in outer.settings().items() if outer else ():
            self._set(f"outer.{key}", value)
        return Run(
            branches,
            common,
            own,
            Replay(self._key("replay"), partial(_is_common, self.name)),
            Place(branch=rows.local.start),
        )

    @property
    def k(self) -> int:
        """The synchronization period of this round. Setting it sets it in every group; the round ends when it is reached."""
        return int(self._get("k"))

    @k.setter
    def k(self, k: int) -> None:
        self._set("k", check_count("k", k))

    @property
    def alpha(self) -> float:
        """The weight of the fast weights in an average, of the first group. Setting it sets it in every group."""
        return float(self._get("alpha"))

    @alpha.setter
    def alpha(self, alpha: float) -> None:
        self._set("alpha", check_alpha(alpha))

    @property
    def outer(self) -> Optimizer | None:
        """The outer optimizer, whose settings may be read and scheduled; None where α moves φ."""
        return self._run.common.outer.optimizer if self._run.common.outer else None

    @property
    def branches(self) -> int:
        """The number of branches, d."""
        return int(self._get("branches"))

    @property
    def local_branches(self) -> range:
        """The branches that this process holds, which `around` goes over: all of them without a mesh."""
        return self._run.branches.local

    @property
    def branch(self) -> int:
        """The branch whose weights are in the model now, from 0 to ``branches - 1``."""
        return self._run.place.branch

    # -- going around -------------------------------------------------------------------------------------------------------

    def _step(self, closure: Closure | None = None, **options: Any) -> Any:
        compiling = torch.compiler.is_compiling()
        (self._before_unseen if compiling else self._before_inner)()
        loss = self.inner.step(**options) if closure is None else self.inner.step(closure, **options)
        (self._after_unseen if compiling else self._after_inner)()
        return loss

    @_disable_dynamo
    def _before_unseen(self) -> None:
        self._before_inner()

    @_disable_dynamo
    def _after_unseen(self) -> None:
        self._after_inner()

    def _before_inner(self) -> None:
        run = self._run
        self._may_go_on("step()")
        if run.walk is None and run.place.taken:
            self._turn_ends()
        self._take_start()
        if len(run.branches.local) > 1:
            run.branches.own_values.before_step(self.param_groups)

    def _after_inner(self) -> None:
        run = self._run
        if len(run.branches.local) > 1:
            run.branches.own_values.after_step()
        if not run.place.round and self._created_state():
            return
        self._at(run.place.stepped())
        if run.at is not None:
            self._set("at", run.at + 1)
            self._set("made", self._get("made") | 1 << run.at)
        if run.walk is None:
            self._turn_ends()

    def _turn_ends(self) -> None:
        """Move on to the next branch; after the last, count the pass if any branch stepped in it, and end the round after k."""
        run = self._run
        start = self._get("start")
        move, place = turn_ends(run.place, run.branches.local, start or self.k)
        if move is Move.AVERAGE:
            self._end_round()
            return
        if not start:  # until then all branches are the weights that are there
            run.branches.load(place.branch)
        self._at(place)

    @overload
    def around(self) -> Iterator[int]: ...
    @overload
    def around(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, int]]: ...
    def around(self, batches: Iterable[Any] | None = None) -> Iterator[Any]:
        """Go over the branches once, or over all ``batches`` with all branches.

        Without ``batches`` it yields each branch's index, with its weights (and buffers) in the model. The body of the loop computes the
        loss of that branch and calls `step`. After the k-th pass of a round the loop ends with the average step. After loading a
        checkpoint that was saved between two branches, it yields those that are left::

            for batch in loader:
                for branch in optimizer.around():
                    ...

        With ``batches`` it yields (minibatch, branch) and goes on to the end of them::

            for batch, branch in optimizer.around(loader):
                ...

        That takes the k minibatches of a round at once and gives them all to one branch before the next one comes. The minibatches of
        a round are independent between branches, so the weights are the same bit for bit, and branches change places d times a
        round instead of d·k times. k minibatches are held in memory. Step a learning rate scheduler in the first branch's turn
        (``if branch == 0: scheduler.step()``, after the optimizer's step): the settings of each minibatch's place are put back for the
        other branches. To resume from a checkpoint saved inside the loop give it the minibatches from the one after `batches_done` on.

        Args:
            batches: minibatches, of whatever kind.

        Raises:
            ValueError: an earlier ``around()`` was left before its last branch, or this is called inside `averaged`; with ``batches``,
                a setting of the groups was changed in the turn of a branch that is not the first.
        """
        self._may_go_on("around()", going_around=True)
        walk = object()
        self._run.walk = walk
        return self._walk(walk, self._turns()) if batches is None else self._walk(walk, self._turns_of(batches))

    def _walk(self, walk: object, turns: Iterator[Any]) -> Iterator[Any]:
        """Turns of branches, as long as their bodies do not end the round or load a checkpoint."""
        run = self._run
        try:
            for turn in turns:
                yield turn
                if run.walk is not walk:
                    return
        except GeneratorExit:
            if run.walk is walk:
                run.walk = None
                self._leave(turns)
            raise
        finally:
            if run.walk is walk:
                run.walk = None

    def _leave(self, turns: Iterator[Any]) -> None:
        """The loop is left at a turn: nothing is undone if it was the last one, after its step."""
        run = self._run
        if run.last and run.place.taken:
            run.leaving = True
            next(turns, None)
            run.leaving = False
        else:
            run.left = bool(run.place.branch != run.branches.local.start or run.place.taken or self._get("at"))

    def _turns(self) -> Iterator[int]:
        """Algorithm 1, the innermost loop: for all branches."""
        run = self._run
        if (
            run.place.taken
        ):  # a checkpoint was saved, or an error raised, between a branch's step and the end of its turn
            over = run.resumed and run.place.branch + 1 == run.branches.local.stop
            self._turn_ends()
            if over:
                return
        self._take_start()
        for branch in range(run.place.branch, run.branches.local.stop):
            before, run.last = self._gradient(), branch + 1 == run.branches.local.stop
            yield branch
            self._note_gradient(before)
            self._turn_ends()

    def _turns_of(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, int]]:
        """Algorithm 1, turned outside in: for all rounds, for all branches, for k steps."""
        run, source = self._run, iter(batches)
        if run.place.taken and not self._get("at"):
            self._turn_ends()
        while not run.leaving and (block := list(islice(source, self._block_size()))):
            self._take_start()
            for branch in range(run.place.branch, run.branches.local.stop):
                yield from self._turn_over(block, branch)
                self._at(run.place._replace(most=self._get("made").bit_count()))
                self._turn_ends()
            self._set("batches", self._get("batches") + len(block))
            self._end_block()

    def _block_size(self) -> int:
        """Minibatches that one branch may take before the next: those left of the round, if more than one branch is apart."""
        apart = len(self._run.branches.local) > 1 and not self._get("start")
        return max(1, self.k - self._run.place.step) if apart else 1

    def _turn_over(self, block: list[Batch], branch: int) -> Iterator[tuple[Batch, int]]:
        """A branch's turn over several minibatches, each with the settings of its place."""
        run, groups = self._run, self.param_groups
        first, last = branch == run.branches.local.start, branch + 1 == run.branches.local.stop
        for at in range(self._get("at"), len(block)):
            run.replay.record(groups, at) if first else run.replay.put(groups, at)
            before, run.at, run.last = self._gradient(), at, last and at + 1 == len(block)
            yield block[at], branch
            self._note_gradient(before)
            if not first:
                run.replay.check(self.param_groups, branch)
            self._set("at", at + 1)
        run.at = None
        self._set("at", 0)
        if first:
            run.replay.end_of_first(self.param_groups, len(block))

    def _end_block(self) -> None:
        """The minibatches taken together are done with: the settings that hold are those after the last one."""
        run = self._run
        run.replay.put(self.param_groups, "next")
        run.replay.forget(self.param_groups)
        run.at = None
        self._set("at", 0)
        self._set("made", 0)

    @property
    def batches_done(self) -> int:
        """Minibatches of ``around(batches)`` that all branches are done with: where a loop that is resumed has to begin."""
        return int(self._get("batches"))

    def _gradient(self) -> tuple[Any, int] | None:
        """A gradient there is, and how often it has been written to."""
        grads = (p.grad for group in self.param_groups for p in group["params"] if p.grad is not None)
        grad = next(grads, None)
        return None if grad is None else (ref(grad), grad._version)

    def _note_gradient(self, before: tuple[Any, int] | None) -> None:
        """Remember the gradient that a turn without a step leaves: it must not be added to another branch's."""
        run = self._run
        if run.place.taken or len(run.branches.local) == 1:
            return
        now = self._gradient()
        if now is not None and (before is None or now[0]() is not before[0]() or now[1] != before[1]):
            run.stale = now

    def _check_gradient(self) -> None:
        """Raise ValueError where the gradient of another branch's turn is still there."""
        stale, self._run.stale = self._run.stale, None
        found = stale[0]() if stale is not None else None
        if found is not None and any(p.grad is found for p in self.params()):
            raise ValueError(
                f"the gradient in step() of branch {self.branch} was begun in another branch's turn, at other weights: call zero_grad() at "
                "the beginning of every turn; to accumulate over several minibatches, do so within a turn of around()"
            )

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients of all parameters, as the inner optimizer does it."""
        self._run.stale = None
        super().zero_grad(set_to_none)

    # -- the average --------------------------------------------------------------------------------------------------------

    def _take_start(self) -> None:
        """Take φ and the branches from the weights as they are now, at the first step of a round and for parameters new since.

        The first round starts from the weights at its first step, not from those at construction.
        """
        run = self._run
        if self._get("start"):
            return
        if run.created:
            self._forget()
        if run.place.at_start(run.branches.local):
            self._begin_round()
        elif run.branches.changed():
            run.branches.fork()

    def _begin_round(self) -> None:
        branches = self._run.branches
        branches.find_buffers()
        if not self._needs_slow():
            self._run.common.drop_slow()
        elif SLOW not in branches.weights:
            branches.follow()
            branches.keep_slow()
        branches.fork()

    def _needs_slow(self) -> bool:
        """Whether the average that ends a round beginning now asks for φ."""
        common = self._run.common
        below_one = min(group[self._key("alpha")] for group in self.param_groups) < 1
        return common.outer is not None or common.displaced or below_one

    def _created_state(self) -> bool:
        """Whether the step just made was one that only creates state, for a checkpoint, and does not count."""
        run = self._run
        run.common.prepare()
        if not (run.place.at_start(run.branches.local) and moves_nothing(self.param_groups)):
            return False
        run.created = not self._get("start")
        run.branches.restart_idle()
        return True

    def _forget(self) -> None:
        """Drop what a step that only created state has taken from the weights: they may have been replaced since."""
        for wrapped in chain(self):
            if isinstance(wrapped, Rounds):
                wrapped._run.created = False
                wrapped._run.branches.clear(wrapped._run.branches.local.start)
                wrapped._run.common.own.clear()

    def average(self) -> None:
        """Make the average step now and begin a new round, e.g. after the last batch of a training. At a round's start: nothing.

        Raises:
            ValueError: called inside `averaged` or after `eval`.
        """
        self._may_not_be_shown("average()")
        run = self._run
        run.walk, run.left, run.stale = None, False, None
        if not run.place.at_start(run.branches.local) and not self._get("start"):
            self._reshard()
            self._end_round()
        self._end_block()

    def _end_round(self) -> None:
        run = self._run
        local = run.branches.local
        if self._get("start"):
            self._set("start", 0)
            self._at(run.place._replace(step=0, branch=local.start, taken=0, most=0))
            return
        check_count("k", self.k)
        alphas = self._alphas()
        run.branches.follow()
        run.common.average(alphas, run.place.round)
        run.branches.load(local.start, same_weights=True)
        self._new_round(round_ends(run.place, local))

    def _alphas(self) -> list[float]:
        return [check_alpha(group[self._key("alpha")]) for group in self.param_groups]

    def _new_round(self, place: Place) -> None:
        self._at(place)
        if self._k is not None:
            self._set("k", evaluate_k(self._k, place.round))
        if self._alpha is not None:
            self._set("alpha", evaluate_alpha(self._alpha, place.round))

    def restart(self) -> None:
        """Begin a new round from the weights (and buffers) in the model, which something else has replaced, as from an average.

        All branches and φ become them; what the unfinished round has made is dropped, though it counts as a round; momentum goes
        as ``inner_state`` says. A wrapper inside this one takes them too, and keeps its place in its own round. For procedures that
        write weights into the model in the middle of a training, such as the folds of SWA:
        ``FoldedSWA(…, point=optimizer.averaged, restart=optimizer.restart)``. Without this call a wrapper goes on towards the
        weights it keeps. While ``start`` lasts and before the first step nothing is kept and nothing is done: the next step takes
        the weights as they are.

        A branch whose momentum is not finite, since it diverged before the weights were replaced, takes another one's, with a
        RuntimeWarning.

        Raises:
            ValueError: called inside `averaged`, with weights in the model that are not finite, or with no branch whose momentum is.

        Example:
            >>> import torch
            >>> from lookaround.optim import Lookahead
            >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
            >>> optimizer = Lookahead(torch.optim.SGD([weight], lr=0.1), k=2, alpha=0.5)
            >>> def steps(count):
            ...     for _ in range(count):
            ...         optimizer.zero_grad()
            ...         weight.sum().backward()
            ...         optimizer.step()
            >>> steps(1)
            >>> _ = weight.data.fill_(5.0)
            >>> optimizer.restart()
            >>> steps(2)
            >>> weight.data  # from 5.0 to 4.8 in two steps, half-way back
            tensor([4.9000])
        """
        self._may_not_be_shown("restart()")
        run = self._run
        if self._get("start"):
            return
        run.walk, run.left, run.stale = None, False, None
        local = run.branches.local
        unfinished = not run.place.at_start(local)
        run.common.restart(self._alphas(), unfinished=unfinished)
        run.branches.load(local.start, same_weights=True)
        self._end_block()
        self._new_round(Place(run.place.round + unfinished, branch=local.start))

    # -- the average to look at ---------------------------------------------------------------------------------------------

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Have in the model, while the context lasts, the weights (and buffers) the average step would give if it came now.

        They are φ + α (mean of the branches - φ), or where the outer optimizer would move φ, so right after an average φ itself.
        Contexts may be nested, training weights come back on leaving and on exceptions, and a state dict taken inside holds
        them: loading it puts them into the parameters (load the model's state dict first, then the optimizer's).

        Under FSDP2 a forward pass without a backward leaves gathered copies of weights in the model, which writing to the
        parameters does not change. With ``model=`` they are dropped here; without it call ``model.reshard()`` between an evaluation
        and the next entry, exit or `average`, and the same of every submodule sharded with ``reshard_after_forward=False``.

        Raises:
            ValueError: from ``step()``, ``around()``, ``average()``, ``restart()`` and ``load_state_dict()`` inside the context.
        """
        run = self._run
        self._show()
        run.shown += 1
        try:
            yield
        finally:
            run.shown -= 1
            self._hide()

    def eval(self) -> None:
        """Have the average in the model until `train` is called, as inside `averaged`; an inner optimizer's own ``eval()`` is called too.

        For frameworks that call it around evaluation and before saving, as Transformers' Trainer does. A checkpoint saved meanwhile has
        the average in the model's part and the training weights in the optimizer's, which loading puts back.
        """
        if not self._run.evaluating:
            self._pass_on("eval")
            self._show()
            self._run.evaluating = True

    def train(self) -> None:
        """Have the training weights back in the model after `eval`; an inner optimizer's own ``train()`` is called too."""
        self._run.evaluating = False
        self._hide()
        self._pass_on("train")

    def _pass_on(self, mode: str) -> None:
        """Call ``train`` or ``eval`` of an inner optimizer that has modes of its own, in every branch."""
        change, branches = getattr(chain(self)[-1], mode, None), self._run.branches
        if not callable(change) or self._run.shown:
            return
        current = branches.current
        for branch in [b for b in branches.local if b == current or b in branches.idle]:
            branches.load(branch)
            branches.own_values.before_step(self.param_groups)
            change()
            branches.own_values.after_step()
        branches.load(current)

    def _show(self) -> None:
        """Put the training weights and buffers aside, where a checkpoint finds them, and the average in their place."""
        run = self._run
        kept = SLOW in run.branches.weights or self.branches > 1
        if run.shown or run.evaluating or run.place.at_start(run.branches.local) or self._get("start") or not kept:
            return
        self._reshard()
        run.branches.follow()
        run.branches.set_aside()
        try:
            run.common.show(self._alphas(), run.place.round)
        except BaseException:
            run.branches.bring_back()
            raise

    def _hide(self) -> None:
        run = self._run
        if not (run.shown or run.evaluating) and TRAINING in run.branches.weights:
            self._reshard()
            run.branches.bring_back()

    def _reshard(self) -> None:
        """Drop the gathered weights that an evaluation under FSDP2 has left in the model, where the wrapper knows the model."""
        if self._run.branches.model is not None:
            reshard(self._run.branches.model)

    # -- what may be done when ----------------------------------------------------------------------------------------------

    def _may_not_be_shown(self, call: str) -> None:
        if self._run.shown:
            raise ValueError(
                f"{call} was called inside averaged(), where the model holds an average: leave the context first"
            )
        if self._run.evaluating:
            raise ValueError(f"{call} was called after eval(), when the model holds an average: call train() first")

    def _may_go_on(self, call: str, *, going_around: bool = False) -> None:
        run = self._run
        if run.shown or run.evaluating:
            self._may_not_be_shown(call)
        if run.stale is not None and not going_around:
            self._check_gradient()
        at = f"around() was left at branch {self.branch} of {self.branches}"
        if going_around and run.walk is not None:
            raise ValueError(
                f"{at} and entered again in its own body: run the loop to its end, or end the round with average() or restart()"
            )
        if run.left and not going_around:
            raise ValueError(
                f"{at} and followed by {call}: enter around() again, or end the round with average() or restart()"
            )
        if run.left:
            warnings.warn(
                f"{at}: it goes on with the branches that are left of that pass", RuntimeWarning, stacklevel=3
            )
        run.left = False

    def _saved(self) -> Group:
        run = self._run
        if run.at is not None and run.place.branch == run.branches.local.start:
            run.replay.record(
                self.param_groups, self._get("at")
            )  # a scheduler may have been stepped since this turn began
        return super()._saved()

    def _load(self, state_dict: Group) -> None:
        if self._run.shown:
            self._may_not_be_shown("load_state_dict()")
        super()._load(state_dict)

    def _fresh_settings(self) -> Group:
        fresh = {key: value for key, value in self.param_groups[0].items() if self._owns_setting(key)}
        dropped = (self._key("inner."), self._key("replay."))
        fresh = {key: value for key, value in fresh.items() if not key.startswith(dropped)}
        fresh |= {self._key(key): value for key, value in _fresh(self._run.branches.local.start).items()}
        if self._k is not None:
            fresh[self._key("k")] = evaluate_k(self._k, 0)
        if self._alpha is not None:
            fresh[self._key("alpha")] = evaluate_alpha(self._alpha, 0)
        return fresh


# Functions and not methods: a wrapper that its own parts hold would outlive its last user, until the next collection of cycles.


def _sets_inside(inside: list[Optimizer], branches: Branches, branch: int) -> dict[str, tuple[Kept, ...]]:
    """What wrappers inside this one keep in sets, as a branch has it."""
    rounds = [(place, o) for place, o in enumerate(inside) if isinstance(o, Rounds)]
    return {o.name: branches.attribute(branch, place, "_run").branches.kept for place, o in rounds}


def _is_common(name: str, group: Group, key: str) -> bool:
    """Whether a setting is one that users and schedulers write."""
    own = key.startswith(f"{name}_")
    return key not in ("params", "param_names") and not own and f"{name}_inner.0.{key}" not in group


def _fresh(branch: int = 0) -> Group:
    """Counters before the first step, and what a checkpoint says of itself."""
    counters = {**dict.fromkeys(COUNTERS, 0), "branch": branch, "at": 0, "made": 0, "batches": 0}
    return {**counters, "has_slow": False, "has_training": False, "tensors": 0, "entries": 0}
