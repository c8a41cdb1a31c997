"""The d branches of a process: a branch is its weights, its buffers and an inner optimizer of its own; fork, exchange, restart."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lookaround.buffers import Buffers
from lookaround.optim import inner
from lookaround.optim.groups import OwnValues
from lookaround.optim.kept import SLOW, TRAINING, Kept, waiting
from lookaround.optim.parameters import Parameters
from lookaround.tensors import reshard


class Branches:
    """One branch is in the model and in the inner optimizers; the others wait.

    Loading another one exchanges the values of weights and buffers in place (parameters keep their storage) and what the inner
    optimizers hold by reference.

    Args:
        optimizers: the inner optimizer and what it is wrapped around, outermost first.
        name: of the wrapper, for what stands in the groups.
        local: the branches that this process holds.
        model: whose buffers are each branch's own; None leaves buffers alone.
        offload: keep what waits in host memory.

    Attributes:
        current: the branch in the model.
        optimizer: the inner optimizer, which steps.
        weights, statistics, counters: sets of the parameters, of the buffers that are averaged and of those that are copied.
        kept: all of them; without a model those of weights alone.
        idle: the inner optimizers of the branches that wait.
        parameters: those that were followed last.
    """

    def __init__(
        self, optimizers: Sequence[Optimizer], name: str, local: range, model: nn.Module | None, offload: bool
    ) -> None:
        self.local, self.model = local, model
        self._optimizers, self.optimizer = list(optimizers), optimizers[0]
        inside = tuple(f"{getattr(o, 'name', '')}_" for o in optimizers[:-1])
        self.own_values = OwnValues(name, len(local), inside)
        self._inside = [(i, str(o.name)) for i, o in enumerate(optimizers) if hasattr(o, "_run")]  # type: ignore[attr-defined]
        self._is_torchs = inner.is_torchs(self._optimizers)
        self._offload, self._buffers = offload, Buffers(model)
        self.clear(local.start)

    def clear(self, current: int) -> None:
        """Forget everything but what is in the model, which is this branch."""
        self.current, self._forked = current, False
        self.weights, self.statistics, self.counters = every = tuple(Kept(self._offload) for _ in range(3))
        self.kept = every if self.model is not None else every[:1]
        self.idle: dict[int, list[inner.Attributes]] = {}
        self.parameters = Parameters()
        self._seen: dict[int, inner.Keys] = {}

    def others(self) -> list[int]:
        """The branches here that are not in the model."""
        return [b for b in self.local if b != self.current]

    def params(self) -> list[Tensor]:
        """All parameters, in the order of the groups."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def follow(self, known: Iterable[Tensor] = ()) -> None:
        """Take note of the parameters and buffers there are now: sets begin with the values of what is new.

        Parameters that are not trained have no part in it, unless they had when they were frozen, or are among those ``known``.
        """
        if not self.parameters.same(self.optimizer.param_groups):
            params = self.params()
            if self.parameters.differ(params):
                self._drop_entries_but(params)
            taking_part = self.parameters.follow(params, (*self.weights.keys, *known))  # type: ignore[arg-type]
            self.weights.follow(taking_part, taking_part)
        if self.model is not None:
            self._follow_buffers()

    def _drop_entries_but(self, params: list[Tensor]) -> None:
        """Forget what waiting branches keep of parameters that are no longer there."""
        there = {id(p) for p in params}
        for held in [held for branch in self.idle.values() for held in branch]:
            state = held.get("state", {})
            for gone in [key for key in state if isinstance(key, Tensor) and id(key) not in there]:
                del state[gone]

    def buffers(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The model's buffers by name: those that are averaged, and those that are copied."""
        now = self._buffers.now()
        averaged = {name: b for name, b in now.items() if self._buffers.policy(name) == "average"}
        return averaged, {name: b for name, b in now.items() if name not in averaged}

    def _follow_buffers(self) -> None:
        for kept, now in zip((self.statistics, self.counters), self.buffers(), strict=True):
            _check_shapes(kept, now)
            kept.follow(list(now), list(now.values()))

    def find_buffers(self) -> None:
        """Look for buffers that modules have got since."""
        if self.model is not None and self._buffers.differ(self.model):
            self._buffers = Buffers(self.model)

    def fork(self) -> None:
        """Give each waiting branch what it does not have yet: everything at first, later what new parameters bring."""
        if len(self.local) == 1:
            if not self.parameters.are(self.optimizer.param_groups):
                self.follow()
            return
        if self._forked and self.model is None and self.parameters.same(self.optimizer.param_groups):
            return
        self.follow()
        self._fork_missing()
        self._forked = True

    def _fork_missing(self) -> None:
        if missing := [b for b in self.others() if b not in self.idle]:
            self.own_values.fork(self.optimizer.param_groups)
        for branch in missing:
            self.restart(branch)
        for kept in self.kept:
            for name in map(waiting, self.others()):
                if name not in kept:
                    kept.keep(name)

    def restart(self, branch: int) -> None:
        """Give a waiting branch a copy of the inner optimizer in place."""
        self.idle[branch] = inner.copied(self._optimizers, self.params(), self.model)

    def restart_idle(self) -> None:
        """Give every waiting branch a copy of the inner optimizer in place, and of what is its own in the groups."""
        if self.idle:
            self.own_values.fork(self.optimizer.param_groups)
        for branch in self.idle:
            self.restart(branch)

    def load(self, branch: int, *, same_weights: bool = False) -> None:
        """Bring a branch into the model. With ``same_weights`` all weights and buffers are equal and need no exchange."""
        current = self.current
        if branch == current:
            return
        if not same_weights:
            self.follow()
        theirs, ours = waiting(branch), waiting(current)
        for kept in self.kept:
            (kept.rename if same_weights else kept.exchange)(theirs, ours)
        held = self.idle.pop(branch, None)
        if held is not None:
            # Those inside write their counters into the groups now, before they are put aside.
            groups = self.optimizer.param_groups
            inner.exchange(self._optimizers, held, self._seen)
            self.idle[current] = held
            if self.own_values.any:
                self.own_values.switch(groups, (branch - current) % len(self.local))
        self.current = branch

    @contextmanager
    def in_place(self, branch: int) -> Iterator[None]:
        """Have a branch's inner optimizer in place, without its weights and what is its own in the groups."""
        if branch == self.current:
            yield
            return
        with inner.in_place(self._optimizers, self.idle[branch]):
            yield

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "idle": {b: inner.to_pickle(self._optimizers, of) for b, of in self.idle.items()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.idle = {b: inner.from_pickle(of) for b, of in self.idle.items()}

    def offset(self, branch: int) -> int:
        """A waiting branch's place, counted from the current one: the same from pass to pass."""
        return (branch - self.current) % len(self.local)

    def at_offset(self, offset: int) -> int:
        """The branch at a place counted from the current one."""
        return self.local.start + (self.current - self.local.start + offset) % len(self.local)

    def attribute(self, branch: int, place: int, key: str) -> Any:
        """An attribute of one of the inner optimizers, as a branch has it."""
        if branch == self.current or branch not in self.idle:
            return getattr(self._optimizers[place], key)
        return self.idle[branch][place][key]

    @property
    def write_groups(self) -> bool:
        """Whether the next inner step may write into the parameter groups, what is each branch's own then."""
        return not self._is_torchs or self.own_values.any or inner.is_hooked(self.optimizer)

    @property
    def hold_rounds(self) -> bool:
        """Whether there are wrappers inside that run rounds of their own."""
        return bool(self._inside)

    def inside(self, branch: int) -> dict[str, Any]:
        """What wrappers inside run their own rounds with, by their names, as a branch has it."""
        return {name: self.attribute(branch, place, "_run") for place, name in self._inside}

    def entries(self, branch: int) -> dict[Tensor, dict[str, Any]]:
        """What the innermost optimizer keeps of each parameter, as a branch has it."""
        state = self.attribute(branch, len(self._optimizers) - 1, "state")
        return {p: state[p] for p in self.params() if p in state}

    def set_aside(self) -> None:
        """Keep the training weights and buffers while something else is in the model."""
        for kept in self.kept:
            kept.keep(TRAINING)

    def bring_back(self) -> None:
        """Put the training weights and buffers back into the model, where they have been set aside, wherever its memory is by now."""
        if TRAINING in self.weights:
            self.follow()
        for kept in self.kept:
            if TRAINING in kept:
                kept.restore(TRAINING)
                kept.drop(TRAINING)

    def reshard(self) -> None:
        """Drop the gathered weights that an evaluation under FSDP2 has left in the model, where it is known."""
        if self.model is not None:
            reshard(self.model)

    def keep_slow(self) -> None:
        """Take φ from what is in the model."""
        self.weights.keep(SLOW)
        self.statistics.keep(SLOW)

    def drop_slow(self) -> None:
        """Keep no φ."""
        self.weights.drop(SLOW)
        self.statistics.drop(SLOW)


def _check_shapes(kept: Kept, now: dict[str, Tensor]) -> None:
    before = {key: of.shape for set_name in kept.names for key, of in kept.values(set_name).items()}
    for name, buffer in now.items():
        if before.get(name, buffer.shape) != buffer.shape:
            raise ValueError(
                f"the buffer {name!r} had shape {tuple(before[name])} when the branches got theirs, and has {tuple(buffer.shape)} "
                "now: change a model's buffers between rounds, after average(), and call restart() then"
            )
