"""A wrapper's own tensors as everyone else sees them: in the entry of the parameter they belong to, under a key with the wrapper's name.

``state[param]`` holds what the inner optimizer keeps of the parameter in the branch that is in the model, and beside it (for a wrapper
named ``lookaround``; a waiting branch is numbered from the one in the model, so that the keys are the same from pass to pass)

    lookaround.slow                              φ
    lookaround.branch.1.weights                  weights of the branch that comes next
    lookaround.branch.1.inner.exp_avg            its inner optimizer's exp_avg
    lookaround.training                          training weights, while the model holds an average
    lookaround.outer.momentum_buffer             the outer optimizer's

and, in the entry of the first parameter that is trained, what belongs to no single one: ``lookaround.slow.buffers.NAME`` (and so for
branches and training), ``lookaround.branch.1.other.KEY`` for what an inner optimizer keeps in ``state`` under a key that is no parameter.
"""

import re
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

from torch import Tensor

Entry = dict[str, Any]
Put = Callable[[Tensor, str, Any], None]

_BRANCH = re.compile(r"branch\.(\d+)\.(weights|inner\.|other\.|buffers\.)(.*)", re.DOTALL)
_OFTEN = re.compile(r"(slow|training)(?:\.buffers\.(.*))?", re.DOTALL)


class Label:
    """What a label without the wrapper's name says.

    >>> label = Label("branch.2.inner.exp_avg"); label.kind, label.offset, label.rest
    ('inner', 2, 'exp_avg')
    >>> label = Label("slow.buffers.bn.running_var"); label.kind, label.set, label.rest
    ('buffers', 'slow', 'bn.running_var')

    Attributes:
        kind: ``"values"`` of a set, ``"buffers"`` of one, ``"inner"`` or ``"other"`` of a waiting branch, ``"outer"``, or ``"own"``.
        set: ``"slow"``, ``"training"``, or ``""`` for a waiting branch's.
        offset: of the waiting branch, counted from the one in the model; 0 for none.
        rest: the key or name at the end.
    """

    def __init__(self, label: str) -> None:
        self.kind, self.set, self.offset, self.rest = "own", "", 0, label
        if found := _BRANCH.fullmatch(label):
            kind = found[2].rstrip(".")
            self.kind, self.offset, self.rest = "values" if kind == "weights" else kind, int(found[1]), found[3]
        elif found := _OFTEN.fullmatch(label):
            self.kind, self.set, self.rest = "values" if found[2] is None else "buffers", found[1], found[2] or ""
        elif label.startswith("outer."):
            self.kind, self.rest = "outer", label.removeprefix("outer.")


class StateEntry(dict[str, Any]):
    """One parameter's entry: what is written into it, a tensor moved to another device say, arrives where it belongs."""

    def __init__(self, values: Entry, inner: MutableMapping[Any, Any], param: Tensor, prefix: str, put: Put) -> None:
        super().__init__(values)
        self._inner, self._param, self._prefix, self._put = inner, param, prefix, put

    def __setitem__(self, label: str, value: Any) -> None:
        super().__setitem__(label, value)
        if isinstance(label, str) and label.startswith(self._prefix):
            self._put(self._param, label.removeprefix(self._prefix), value)
        else:
            self._inner[self._param][label] = value

    def __delitem__(self, label: str) -> None:
        if isinstance(label, str) and label.startswith(self._prefix):
            raise KeyError(f"{label} belongs to the wrapper and is not taken out: load a state dict instead")
        super().__delitem__(label)
        del self._inner[self._param][label]

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


class State(MutableMapping[Any, Any]):
    """``state`` of a wrapper: the inner optimizer's, with the wrapper's own tensors in the parameters' entries.

    Args:
        inner: the inner optimizer's state; its own entries are left alone, so it still finds an empty one empty.
        params: that have something of the wrapper's.
        own: what the wrapper has of a parameter, by label.
        prefix: the wrapper's name and a dot.
        put: takes what is written under a label of the wrapper's.
    """

    def __init__(
        self,
        inner: MutableMapping[Any, Any],
        params: Callable[[], list[Tensor]],
        own: Callable[[Tensor], Entry],
        prefix: str,
        put: Put,
    ) -> None:
        self._inner, self._params, self._own, self._prefix, self._put = inner, params, own, prefix, put

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, Tensor):
            return self._inner[key]
        own = {self._prefix + label: value for label, value in self._own(key).items()}
        return StateEntry({**self._inner.get(key, {}), **own}, self._inner, key, self._prefix, self._put)

    def __setitem__(self, key: Any, value: Any) -> None:
        own = {k: v for k, v in value.items() if str(k).startswith(self._prefix)} if isinstance(value, Mapping) else {}
        for label, of in own.items():
            self._put(key, label.removeprefix(self._prefix), of)
        self._inner[key] = {k: v for k, v in value.items() if k not in own} if own else value

    def __delitem__(self, key: Any) -> None:
        if key not in self:
            raise KeyError(key)
        self._inner.pop(key, None)  # what is ours goes when the parameter does

    def __iter__(self) -> Iterator[Any]:
        keys = list(self._inner)
        known = {id(key) for key in keys}
        return iter([*keys, *(p for p in self._params() if id(p) not in known and self._own(p))])

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, key: object) -> bool:
        return key in self._inner or (isinstance(key, Tensor) and bool(self._own(key)))

    def __repr__(self) -> str:
        return repr(dict(self))


def split(state: Mapping[Any, Any], prefix: str) -> tuple[dict[Any, Any], dict[Any, Entry]]:
    """A state dict's entries without what a wrapper has put there, and that, by the parameter's number and label."""
    theirs: dict[Any, Any] = {}
    own: dict[Any, Entry] = {}
    for key, entry in state.items():
        ours = {k: v for k, v in entry.items() if str(k).startswith(prefix)} if isinstance(entry, Mapping) else {}
        if ours:
            own[key] = {label.removeprefix(prefix): value for label, value in ours.items()}
            entry = {k: v for k, v in entry.items() if k not in ours}
        if entry is not None and (not ours or entry):
            theirs[key] = entry
    return theirs, own


def count(state: Mapping[Any, Any]) -> int:
    """How many things stand in the entries of a state dict: fewer in a checkpoint than when it was saved, and something is missing."""
    return sum(len(entry) for entry in state.values() if isinstance(entry, Mapping))
