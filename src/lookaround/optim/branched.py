"""Optimizers with branches: what `Lookahead` and `Lookaround` have in common for whoever trains with them."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar, overload

import torch
from torch import nn
from torch._compile import _disable_dynamo
from torch.optim import Optimizer

from lookaround.holders import hold
from lookaround.optim import begin, momentum, shown
from lookaround.optim.adaptive import Adaptive
from lookaround.optim.around import around
from lookaround.optim.average import Alone, Rows
from lookaround.optim.branches import Branches
from lookaround.optim.checks import (
    Alpha,
    Period,
    check_count,
    check_model,
    check_nesting,
    check_overlap,
)
from lookaround.optim.common import Common
from lookaround.optim.outer import MakeOuter, Outer
from lookaround.optim.overlap import Overlap
from lookaround.optim.replicated import Replicas
from lookaround.optim.run import LEFT_OUT, UNDER_WAY
from lookaround.optim.scheduled import Scheduled
from lookaround.optim.wrapper import Closure, Group, chain

Batch = TypeVar("Batch")


class Branched(Scheduled):
    """Rounds of k inner steps of d branches, each closed by an average step. `Lookahead` and `Lookaround` are its two faces."""

    _careful: ClassVar[bool] = False

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
        adaptive: Adaptive | None = None,
        overlap: int = 0,
        replicas: Replicas | None = None,
    ) -> None:
        self._check_inner(inner)
        inside, rows = chain(inner), replicas or rows or Alone(check_count("branches", branches))
        settings = begin.settings(rows, k, alpha, start)
        check_nesting(inside)
        check_model(model, inner)
        mode = momentum.check_mode(inner_state, inside[-1])
        if overlap := check_overlap(overlap, settings["k"], mode, inside):
            settings |= dict.fromkeys((UNDER_WAY, LEFT_OUT), 0)
        here = Branches(inside, self.name, rows.local, model, offload)
        moves = Outer(outer, here.params()) if outer else None
        settings |= {f"outer.{key}": value for key, value in moves.settings().items()} if moves else {}
        super().__init__(inner, settings)
        common = Common(here, rows, mode, moves, self._careful)
        flight = Overlap(here, rows, common) if overlap else None
        plain = len(inside) == 1
        self._run = begin.rounds(
            self.name,
            here,
            common,
            adaptive,
            k,
            alpha,
            plain=plain,
            flight=flight,
            overlap=overlap,
            replicas=replicas,
        )
        hold(self)

    def _step(self, closure: Closure | None, options: dict[str, Any]) -> Any:
        run, plain = self._run, closure is None and not options
        inner = run.branches.optimizer
        compiling = torch.compiler.is_dynamo_compiling()  # by this name: the compiler does not know it by another one
        before = run.before_step if plain and not compiling else run.before_other_step
        _unseen(before) if compiling else before()
        given = () if closure is None else (closure,)
        loss = inner.step() if plain else inner.step(*given, **options)
        _unseen(run.after_step) if compiling else run.after_step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients of all parameters, as the inner optimizer does it."""
        self._run.stale = None
        super().zero_grad(set_to_none)

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
        round instead of d·k times. k minibatches are held in memory. Step a learning rate scheduler in the first branch's turn, after
        its step (``if branch == 0: scheduler.step()``; with a mesh ``if branch == optimizer.local_branches.start:``): the settings of
        each minibatch's place are put back for the other branches. To resume from a checkpoint saved inside the loop give it the
        minibatches from the one after `batches_done` on.

        Args:
            batches: minibatches, of whatever kind.

        Raises:
            ValueError: an earlier ``around()`` was left before its last branch, or this is called inside `averaged`; with ``batches``,
                a setting of the groups was changed in the turn of a branch that is not the first.
        """
        return around(self._run, batches)

    def average(self) -> None:
        """Make the average step now and begin a new round, e.g. after the last batch of a training. At a round's start: nothing.

        Raises:
            ValueError: called inside `averaged` or after `eval`.
        """
        self._run.refuse_while_shown("average()")
        self._run.end_here()

    def restart(self) -> None:
        """Begin a new round from the weights (and buffers) in the model, which something else has replaced, as from an average.

        All branches and φ become them; what the unfinished round has made is dropped, though it counts as a round; momentum goes
        as ``inner_state`` says. A wrapper inside this one takes them too, and keeps its place in its own round. For procedures that
        write weights into the model in the middle of a training (a loop over `around` ends with it), such as the folds of SWA:
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
        self._run.refuse_while_shown("restart()")
        self._run.restart()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Have in the model, while the context lasts, the weights (and buffers) the average step would give if it came now.

        They are φ + α (mean of the branches - φ), or where the outer optimizer would move φ, so right after an average φ itself.
        Contexts may be nested, training weights (and with ``model=`` buffers) come back on leaving and on exceptions, and a state dict
        taken inside holds them: loading it puts them into the parameters (load the model's state dict first, then the optimizer's and
        those of averages, in any order). The ``averaged()`` of an average over time may be entered inside, and the two left in any order.
        Where a round begins the model holds the average already: nothing is put aside there, and what is written inside stays.

        Under FSDP2 a forward pass without a backward leaves gathered copies of weights in the model, which writing to the
        parameters does not change. With ``model=`` they are dropped here; without it call ``model.reshard()`` between an evaluation
        and the next entry, exit or `average`, and the same of every submodule sharded with ``reshard_after_forward=False``.

        Raises:
            ValueError: from ``step()``, ``around()``, ``average()``, ``restart()`` and ``load_state_dict()`` inside the context; and where
                the model holds something else to look at, inside ``averaged()`` of an average over time, say.
        """
        run, name = self._run, type(self).__name__
        shown.show(run, name, f"averaged() of a {name}")
        run.shown += 1
        try:
            yield
        finally:
            run.shown -= 1
            shown.hide(run)

    def eval(self) -> None:
        """Have the average in the model until `train` is called, as inside `averaged`; an inner optimizer's own ``eval()`` is called too.

        For frameworks that call it around evaluation and before saving, as Transformers' Trainer does. A checkpoint saved meanwhile has
        the average in the model's part and the training weights in the optimizer's, which loading puts back.

        Raises:
            ValueError: the model holds something else to look at, inside ``averaged()`` of an average over time, say; or inside `averaged`,
                with an inner optimizer that has an ``eval()`` of its own.
        """
        shown.evaluate(self._run, type(self).__name__, self._change("eval"))

    def train(self) -> None:
        """Have the training weights back in the model after `eval`; an inner optimizer's own ``train()`` is called too.

        Raises:
            ValueError: as from `eval`.
        """
        shown.train(self._run, type(self).__name__, self._change("train"))

    def _change(self, mode: str) -> Closure | None:
        change = getattr(chain(self)[-1], mode, None)
        return change if callable(change) else None

    def _saved(self) -> Group:
        run, local = self._run, self._run.branches.local
        if run.at is not None and len(local) > 1 and run.place.branch == local.start:
            run.replay.record(self.param_groups, run.done)  # a scheduler may have been stepped since this turn began
        return super()._saved()

    def _load(self, state_dict: Group) -> None:
        if self._run.shown:
            self._run.refuse_while_shown("load_state_dict()")
        super()._load(state_dict)


@_disable_dynamo
def _unseen(part: Callable[[], None]) -> None:
    """What the compiler does not look into."""
    part()
