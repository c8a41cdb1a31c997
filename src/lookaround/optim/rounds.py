"""The loop all methods share: go around (k inner steps of every branch), then average."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from torch import nn
from torch.optim import Optimizer

from lookaround.optim import momentum, slow, swap
from lookaround.optim.average import average_all, prepare, restart_all
from lookaround.optim.branches import BranchStore
from lookaround.optim.checks import (
    Period,
    check_alpha,
    check_count,
    check_model,
    check_nesting,
    evaluate,
    moves_nothing,
)
from lookaround.optim.resume import absolute, adopt, check_complete, relative
from lookaround.optim.wrapper import Closure, Group, Wrapper, chain

_COUNTERS = {"round": 0, "step": 0, "branch": 0, "taken": 0, "pass": 0}
# Which tensors a checkpoint has to hold beside the branches: φ, and the training weights while the model holds an average.
_HELD = {"has_slow": False, "has_training": False}


class Rounds(Wrapper):
    """Rounds of k inner steps of d branches, each closed by an average step. `Lookahead` and `Lookaround` are its two faces.

    The paper's loops are nested (for each round, for k steps, for d branches); a training loop calls ``step()`` instead. So the place
    in the nest is kept in the groups, as counters that are saved and loaded with everything else:

    ``round``
        rounds ended so far,
    ``step``
        inner steps of every branch in this round: a round ends when it reaches ``k``,
    ``branch``
        whose weights are in the model; a pass goes over all branches once,
    ``taken`` and ``pass``
        steps in this pass of the current branch and of the branch with most: what tells a skipped step from a made one.
    ``start``
        passes still before the first round, in which all branches share one set of weights; 0 from the first round on,
    ``has_slow`` and ``has_training``
        whether φ is kept, and whether the training weights are set aside for `averaged`: a checkpoint without them is refused.
    """

    _unshown: ClassVar[tuple[str, ...]] = (*_COUNTERS, *_HELD, "inner")
    _checks_finite: ClassVar[bool] = False

    def __init__(
        self,
        inner: Optimizer,
        branches: int,
        k: Period,
        alpha: float,
        inner_state: momentum.Mode,
        model: nn.Module | None = None,
        offload: bool = False,
        start: int = 0,
    ) -> None:
        self._check_inner(inner)
        check_count("branches", branches)
        check_count("start", start, least=0)
        check_alpha(alpha)
        check_nesting(inner)
        check_model(model, inner)
        self._inner_state = momentum.check_mode(inner_state, chain(inner)[-1])
        self._branches = BranchStore(self, model, offload)
        self._period = k if callable(k) else None
        period = evaluate(k, 0) if callable(k) else check_count("k", k)
        super().__init__(
            inner, {"k": period, "alpha": alpha, "branches": branches, "start": start, **_COUNTERS, **_HELD}
        )
        self._walk: Iterator[int] | None = None
        self._averaged = 0
        self._created = False

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
    def branches(self) -> int:
        """The number of branches, d."""
        return int(self._get("branches"))

    @property
    def branch(self) -> int:
        """The branch whose weights are in the model now, from 0 to ``branches - 1``."""
        return int(self._get("branch"))

    def around(self) -> Iterator[int]:
        """Go over the branches once: yield each one's index, with its weights (and buffers) in the model.

        The body of the loop computes the loss of that branch and calls `step`. After the k-th pass of a round the loop ends with
        the average step. After loading a checkpoint that was saved between two branches, it yields those that are left.

        Raises:
            ValueError: an earlier ``around()`` was left before its last branch, or this is called inside `averaged`.
        """
        self._forbid_inside_averaged("around()")
        if self._walk is not None:
            raise ValueError(
                f"around() was left at branch {self.branch} of {self.branches} and entered again: run its loop to the end, "
                "or end the round with average()"
            )
        self._walk = self._go_around()
        return self._walk

    def _go_around(self) -> Iterator[int]:
        if self._get("taken"):  # resumed from a checkpoint saved between a branch's step and the end of its loop body
            self._advance()
        self._begin_round()
        walk = self._walk
        for branch in range(self.branch, self.branches):
            yield branch
            if self._walk is not walk:  # the body ended the round, or loaded a checkpoint
                return
            if branch + 1 == self.branches:
                self._walk = None
            self._advance()

    def _step(self, closure: Closure | None = None) -> Any:
        self._forbid_inside_averaged("step()")
        self._begin_round()
        loss = self._inner_step(closure)
        if not self._get("round"):
            prepare(self)
            if self._at_start() and moves_nothing(
                self.param_groups
            ):  # it creates state for a checkpoint, and does not count
                self._created = not self._get("start")
                self._branches.restart_idle()
                return loss
        self._set("taken", self._get("taken") + 1)
        self._set("pass", max(self._get("pass"), self._get("taken")))
        if self._walk is None:
            self._advance()
        return loss

    def _inner_step(self, closure: Closure | None) -> Any:
        with self._branches.watch_groups():
            return self.inner.step(closure) if closure is not None else self.inner.step()

    def _advance(self) -> None:
        """Move on to the next branch; after the last, count the pass if any branch stepped in it, and end the round after k."""
        self._set("taken", 0)
        if self.branch + 1 < self.branches:
            self._load(self.branch + 1)
            return
        self._set("step", self._get("step") + self._get("pass"))
        self._set("pass", 0)
        if self._get("step") >= (self._get("start") or self.k):
            self._end_round()
        else:
            self._load(0)

    def _load(self, branch: int) -> None:
        """Bring a branch into the model; before the first round all of them are the weights that are there."""
        if self._get("start"):
            self._set("branch", branch)
        else:
            self._branches.load(branch)

    def average(self) -> None:
        """Make the average step now and begin a new round, e.g. after the last batch of a training. At a round's start: nothing.

        Raises:
            ValueError: called inside `averaged`.
        """
        self._forbid_inside_averaged("average()")
        self._walk = None
        if not self._at_start() and not self._get("start"):
            swap.reshard_model(self)
            self._end_round()

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
        self._forbid_inside_averaged("restart()")
        if self._get("start"):
            return
        self._walk = None
        unfinished = not self._at_start()
        restart_all(self)
        self._branches.load(0, same_weights=True)
        self._set("round", self._get("round") + unfinished)
        self._new_round()

    def _end_round(self) -> None:
        if self._get("start"):
            self._new_round()
            self._set("start", 0)
            return
        check_count("k", self.k)
        for group in self.param_groups:
            check_alpha(group[self._key("alpha")])
        average_all(self, write_back=True)
        self._branches.load(0, same_weights=True)
        self._set("round", self._get("round") + 1)
        self._new_round()

    def _new_round(self) -> None:
        for counter in ("step", "branch", "taken", "pass"):
            self._set(counter, 0)
        if self._period is not None:
            self._set("k", evaluate(self._period, self._get("round")))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Have in the model, while the context lasts, the weights (and buffers) the average step would give if it came now.

        They are φ + α (mean of the branches - φ), so right after an average φ itself. Contexts may be nested, training weights come
        back on leaving and on exceptions, and a state dict taken inside holds them: loading it puts them into the parameters
        (load the model's state dict first, then the optimizer's).

        Under FSDP2 a forward pass without a backward leaves gathered copies of weights in the model, which writing to the
        parameters does not change. With ``model=`` they are dropped here; without it call ``model.reshard()`` between an evaluation
        and the next entry, exit or `average`, and the same of every submodule sharded with ``reshard_after_forward=False``.

        Raises:
            ValueError: from ``step()``, ``around()``, ``average()``, ``restart()`` and ``load_state_dict()`` inside the context.
        """
        if not self._averaged:
            swap.put_average_in(self)
        self._averaged += 1
        try:
            yield
        finally:
            self._averaged -= 1
            if not self._averaged:
                swap.take_average_out(self)

    def _forbid_inside_averaged(self, call: str) -> None:
        if self._averaged:
            raise ValueError(
                f"{call} was called inside averaged(), where the model holds an average: leave the context first"
            )

    def _begin_round(self) -> None:
        """Take φ and the branches from the weights as they are now, at the first step of a round and for parameters new since.

        The first round starts from the weights at its first step, not from those at construction.
        """
        if self._get("start"):
            return
        if self._created:
            self._forget()
        slow.keep(self)
        self._branches.fork_missing()

    def _forget(self) -> None:
        """Drop what a step that only created state has taken from the weights: they may have been replaced since."""
        for wrapped in chain(self):
            if isinstance(wrapped, Rounds):
                wrapped._created = False
                for key in [key for key in self.state if isinstance(key, str) and key.startswith(f"{wrapped.name}.")]:
                    del self.state[key]

    def _needs_slow(self) -> bool:
        """Whether the average that ends a round beginning now asks for φ."""
        return any(group[self._key("alpha")] < 1 for group in self.param_groups)

    def _at_start(self) -> bool:
        group, name = self.inner.param_groups[0], self.name
        return not (group[name + "_step"] or group[name + "_branch"] or group[name + "_taken"] or group[name + "_pass"])

    def _laid_out(self, state_dict: Group) -> Group:
        return relative(self, state_dict)

    def _read(self, groups: list[Group], own: dict[str, dict[int | str, Any]]) -> tuple[list[Group], dict[str, Any]]:
        return absolute(self, groups, own)

    def _check_checkpoint(self, groups: list[Group], own: dict[str, dict[int | str, Any]]) -> None:
        self._forbid_inside_averaged("load_state_dict()")
        check_complete(self, groups, own)

    def _fresh_settings(self) -> Group:
        fresh = {
            **super()._fresh_settings(),
            **{self._key(key): value for key, value in {**_COUNTERS, **_HELD}.items()},
        }
        fresh.pop(self._key("inner"), None)
        if self._period is not None:
            fresh[self._key("k")] = evaluate(self._period, 0)
        return fresh

    def _adopt_tensors(self, own: dict[str, dict[int | str, Any]]) -> None:
        self._walk, self._created = None, False
        self.state.update(adopt(self, own))
        swap.take_average_out(self)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_walk": None, "_averaged": 0}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        swap.take_average_out(self)
