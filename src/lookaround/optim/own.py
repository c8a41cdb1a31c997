"""What a wrapper with branches keeps, by parameter and label (`lookaround.optim.schema`): to be looked at, replaced, saved and loaded."""

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from copy import deepcopy
from typing import Any

from torch import Tensor

from lookaround.optim.branches import Branches
from lookaround.optim.common import Common
from lookaround.optim.kept import SLOW, TRAINING, waiting
from lookaround.optim.plain import dtype_note
from lookaround.optim.schema import Entry, Label, State

Group = dict[str, Any]

# What a state dict says of itself in the groups.
COUNTED = ("_has_slow", "_has_training", "_tensors", "_entries")
Loaded = dict[Tensor, Entry]


class Own:
    """What stands in the parameters' entries beside what the inner optimizer has there.

    Args:
        name: of the wrapper.
        branches, common: where it is.
        plain: whether the inner optimizer is not a wrapper, which would note its parameters' dtypes itself.
    """

    def __init__(self, name: str, branches: Branches, common: Common, plain: bool) -> None:
        self._prefix, self._branches, self._common, self._plain = f"{name}.", branches, common, plain

    def state(self) -> MutableMapping[Any, Any]:
        """The inner optimizer's state with all of this in it."""
        return State(self._branches.optimizer.state, self._branches.params, self.entry, self._prefix, self.put)

    def entry(self, param: Tensor) -> Entry:
        """All that is kept of a parameter, by label."""
        return dict(self._of(param))

    def _sets(self) -> list[tuple[str, str, str]]:
        """(name of a set, its label for weights, its label for buffers) of all sets there may be."""
        named = [(SLOW, "slow", "slow"), (TRAINING, "training", "training")]
        others = [(waiting(b), f"branch.{self._branches.offset(b)}") for b in self._branches.others()]
        return named + [(name, f"{label}.weights", label) for name, label in others]

    def _of(self, param: Tensor) -> Iterator[tuple[str, Any]]:
        branches = self._branches
        for name, label, _ in self._sets():
            if (value := branches.weights.value(name, param)) is not None:
                yield label, value
        for branch in branches.idle:
            with branches.in_place(branch):
                entry = branches.optimizer.state.get(param, {})
                noted = {**entry, **self._note(entry, param)}
            yield from ((f"branch.{branches.offset(branch)}.inner.{key}", value) for key, value in noted.items())
        for label, of in self._common.own.items():
            if param in of:
                yield label, of[param]
        if self._common.outer is not None:
            yield from ((f"outer.{key}", v) for key, v in self._common.outer.entries().get(param, {}).items())
        yield from self._note(branches.optimizer.state.get(param, {}), param, "").items()
        if param is self._first():
            yield from self._of_none()

    def _note(self, entry: Any, param: Tensor, prefix: str | None = None) -> Entry:
        note = dtype_note(entry, param) if self._plain else []
        return {(self._prefix if prefix is None else prefix) + "dtype": note[0]} if note else {}

    def _first(self) -> Tensor | None:
        """The parameter in whose entry stands what is of no single one."""
        params = self._branches.params()
        return next((p for p in params if p.requires_grad), params[0] if params else None)

    def _of_none(self) -> Iterator[tuple[str, Any]]:
        branches = self._branches
        for name, _, label in self._sets():
            for kept in (branches.statistics, branches.counters):
                yield from ((f"{label}.buffers.{key}", value) for key, value in kept.values(name).items())
        for branch in branches.idle:
            with branches.in_place(branch):
                others = {k: v for k, v in branches.optimizer.state.items() if not isinstance(k, Tensor)}
            yield from ((f"branch.{branches.offset(branch)}.other.{key}", value) for key, value in others.items())

    def put(self, param: Tensor, label: str, value: Any) -> None:
        """Take over what a user has written under a label."""
        at, branches = Label(label), self._branches
        branch = branches.at_offset(at.offset)
        name = at.set or waiting(branch)
        if at.kind == "values":
            branches.weights.replace(name, param, value)
        elif at.kind == "buffers":
            kept = branches.statistics if at.rest in branches.statistics.keys else branches.counters
            kept.replace(name, at.rest, value)
        elif at.kind == "outer" and self._common.outer is not None:
            self._common.outer.entries()[param][at.rest] = value
        elif at.kind in ("inner", "other"):
            with branches.in_place(branch):
                state: Any = branches.optimizer.state
                target = state if at.kind == "other" else state[param]
                target[at.rest] = value
        else:
            self._common.own.setdefault(label, {})[param] = value

    def save(self, state_dict: Group) -> Group:
        """An inner optimizer's state dict with all of this in it."""
        branches, state = self._branches, dict(state_dict["state"])
        beside: Group = {}
        seen: set[int] = set()  # a parameter that is in two groups has one entry, that of its first place
        for index, param in enumerate(branches.params()):
            if id(param) not in seen and (own := self.entry(param)):
                state[index] = {**state.get(index, {}), **{self._prefix + label: v for label, v in own.items()}}
            seen.add(id(param))
        groups = [dict(group) for group in state_dict["param_groups"]]
        for branch in branches.idle:
            with branches.in_place(branch):
                theirs = branches.optimizer.state_dict()
            head = f"{self._prefix}branch.{branches.offset(branch)}."
            beside |= {head + key: value for key, value in theirs.items() if key not in ("state", "param_groups")}
            for group, counted in zip(groups, theirs["param_groups"], strict=True):
                counts = {k: counted[k] for k in branches.own_values.own(group) if k.endswith(COUNTED)}
                group |= {branches.own_values.key(branches.offset(branch), key): v for key, v in counts.items()}
        return {**state_dict, "state": state, "param_groups": groups, **beside}

    def load(self, own: Loaded) -> None:
        """Take over copies of what a checkpoint had, into nothing."""
        sets: dict[str, dict[Any, Tensor]] = {}
        buffers: dict[str, dict[Any, Tensor]] = {}
        outer: dict[Any, Entry] = {}
        for param, entry in own.items():
            for label, value in entry.items():
                at = Label(label)
                name = at.set or waiting(self._branches.at_offset(at.offset))
                if at.kind == "values":
                    sets.setdefault(name, {})[param] = value
                elif at.kind == "buffers":
                    buffers.setdefault(name, {})[at.rest] = value
                elif at.kind == "outer":
                    outer.setdefault(param, {})[at.rest] = value
                elif at.kind == "own" and label != "dtype":
                    moved = value.to(param.device, copy=True) if isinstance(value, Tensor) else deepcopy(value)
                    self._common.own.setdefault(label, {})[param] = moved
        self._adopt(sets, buffers)
        if self._common.outer is not None and SLOW in self._branches.weights:
            self._common.outer.follow(self._branches.weights.values(SLOW))
            self._common.outer.load_entries(outer)

    def _adopt(self, sets: Mapping[str, Mapping[Any, Tensor]], buffers: Mapping[str, Mapping[Any, Tensor]]) -> None:
        branches = self._branches
        branches.follow(known=[p for values in sets.values() for p in values])
        for name, values in sets.items():
            branches.weights.adopt(name, values)
            for kept in (branches.statistics, branches.counters) if name != SLOW else (branches.statistics,):
                theirs = buffers.get(name, {})
                kept.adopt(name, {key: theirs[key] for key in kept.keys if key in theirs})


def inner_parts(own: Mapping[Any, Entry], offset: int) -> dict[Any, Any]:
    """Of a checkpoint's own entries, by number: a copy of the state of a waiting branch's inner optimizer."""
    state: dict[Any, Any] = {}
    for index, entry in own.items():
        for label, value in entry.items():
            at = Label(label)
            if at.offset == offset and at.kind == "inner":
                state.setdefault(index, {})[at.rest] = value
            elif at.offset == offset and at.kind == "other":
                state[at.rest] = value
    return deepcopy(state)


def check_buffers(own: Mapping[Any, Entry], sets: Sequence[str], branches: Branches) -> None:
    """Raise ValueError where the buffers of a checkpoint's sets are not the model's, in name or shape.

    Args:
        own: a checkpoint's own entries.
        sets: labels of the sets there have to be, as those of buffers begin.
        branches: whose buffers they are.
    """
    averaged, copied = branches.buffers()
    saved: dict[str, dict[str, tuple[int, ...]]] = {label: {} for label in sets}
    for entry in own.values():
        for label, value in entry.items():
            if Label(label).kind == "buffers":
                saved.setdefault(label.partition(".buffers.")[0], {})[Label(label).rest] = tuple(value.shape)
    for label, theirs in saved.items():
        ours = {k: tuple(v.shape) for k, v in (averaged if label == "slow" else {**averaged, **copied}).items()}
        different = sorted(key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key))
        if different:
            raise ValueError(
                f"the buffers of the checkpoint's branches differ from the model's in {', '.join(different[:5])}: "
                "pass the same model= as when it was saved (or none, if there was none)"
            )
