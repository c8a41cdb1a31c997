"""What inner steps write into the parameter groups is a branch's own; everything else in them is common to all branches.

Some optimizers count their steps in a group, or keep tensors there. Such values of waiting branches stand in the groups too, under
``NAME_inner.OFFSET.KEY`` with the branch counted from the one in the model, so that they are saved and loaded with everything else;
``NAME_inner.0.KEY`` says that ``KEY`` is each branch's own.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

from torch import Tensor

from lookaround.optim.watch import Group, Watch

_ABSENT = object()
_MUTABLE = (list, dict, set)
_NAMES = ("params", "param_names")
_SCALARS = (bool, int, float, complex, str)


class OwnValues:
    """Keeps the values of ``count`` branches apart, the one in the model first.

    Args:
        name: of the wrapper.
        count: branches.
        inside: how the keys of wrappers inside begin: their counters are each branch's own from the beginning.

    Attributes:
        any: whether there may be values that are each branch's own.
    """

    def __init__(self, name: str, count: int, inside: tuple[str, ...] = ()) -> None:
        self._ours, self._prefix = f"{name}_", f"{name}_inner"
        self._inside = inside
        self._count = count
        self._before: list[tuple[Group, Group, dict[str, tuple[Tensor, int, Tensor]]]] = []
        # How the branches' own values were left; None where that is not known.
        self._left: dict[int, dict[str, tuple[Any, int]]] | None = {}
        self.any = False
        self._watch = Watch(partial(_is_of_others, self._ours))

    def key(self, offset: int, key: str) -> str:
        """Where a branch's own value of a key stands."""
        return f"{self._prefix}.{offset}.{key}"

    def own(self, group: Group) -> list[str]:
        """The keys of a group whose values are each branch's own."""
        head = self.key(0, "")
        return [key.removeprefix(head) for key in group if key.startswith(head)]

    def fork(self, groups: Sequence[Group]) -> None:
        """Give each waiting branch the values of the one in the model; what can be changed in place is each branch's own from now on."""
        for group in groups:
            changeable = [
                key
                for key, value in group.items()
                if (isinstance(value, _MUTABLE) and key not in _NAMES) or key.startswith(self._inside)
            ]
            for key in dict.fromkeys([*self.own(group), *changeable]):
                group[self.key(0, key)] = True
                self._write(group, key, [group.get(key, _ABSENT)] * self._count)
        self.note(groups)

    def before_step(self, groups: Sequence[Group]) -> None:
        """To be called before the inner step: what a user has written since the last one reaches all branches. Quick where nothing was."""
        if not self._watch.same(groups):
            self._spread(groups)
            self.note(groups)
            self._before = [(group, self._theirs(group), dict(_tensors(group))) for group in groups]
            self._watch.look(groups)

    def after_step(self, groups: Sequence[Group]) -> None:
        """To be called after the inner step: what it has written is the branch's own, and the others keep what was there before."""
        if not self._watch.same(groups):
            for group, old, tensors in self._before:
                self._separate(group, old, tensors)
            self.note(groups)
            self._watch.forget()

    def _theirs(self, group: Group) -> Group:
        """What of a group is not the wrapper's."""
        return {key: value for key, value in group.items() if not key.startswith(self._ours)}

    def _separate(self, group: Group, old: Group, tensors: dict[str, tuple[Tensor, int, Tensor]]) -> None:
        new = self._theirs(group)
        written = {k for k in new.keys() | old.keys() if not _is_still(new.get(k, _ABSENT), old.get(k, _ABSENT))}
        for key in (written | set(_changed(tensors))) - {*self.own(group), *_NAMES}:
            value = tensors[key][2] if key in tensors else old.get(key, _ABSENT)
            group[self.key(0, key)] = True
            self._write(group, key, [group.get(key, _ABSENT)] + [value] * (self._count - 1))

    def __getstate__(self) -> Group:
        """A copy has other groups: what was seen of these says nothing of them."""
        return {**self.__dict__, "_before": [], "_left": None, "any": True}

    def _write(self, group: Group, key: str, values: Sequence[Any]) -> None:
        for offset, value in enumerate(values):
            name = self.key(offset, key) if offset else key
            if value is _ABSENT:
                group.pop(name, None)
            else:
                group[name] = _copy(value) if offset else value

    def switch(self, groups: Sequence[Group], by: int) -> None:
        """The branch ``by`` places further on comes into the model."""
        self._spread(groups)
        for group in groups:
            for key in self.own(group):
                names = [key, *(self.key(offset, key) for offset in range(1, self._count))]
                values = [group.get(name, _ABSENT) for name in names]
                for name, value in zip(names, values[by:] + values[:by], strict=True):
                    if value is _ABSENT:
                        group.pop(name, None)
                    else:
                        group[name] = value
        self.note(groups)

    def note(self, groups: Sequence[Group]) -> None:
        """Remember how the groups are left: what differs later has been written from outside."""
        self._left = {id(g): {k: _seen(g.get(k, _ABSENT)) for k in own} for g in groups if (own := self.own(g))}
        self.any = bool(self._left)

    def _spread(self, groups: Sequence[Group]) -> None:
        """What differs from how it was left has been written from outside."""
        left = self._left or {}
        for group in groups if left else ():
            for key, (value, version) in left.get(id(group), {}).items():
                now = group.get(key, _ABSENT)
                if now is not value or _seen(now)[1] != version:
                    self._write(group, key, [now] * self._count)

    def of_waiting(self, group: Group, offset: int) -> Group:
        """A group as a waiting branch has it."""
        theirs = dict(group)
        for key in self.own(group):
            value = theirs.get(self.key(offset, key), _ABSENT)
            if value is _ABSENT:
                theirs.pop(key, None)
            else:
                theirs[key] = value
        return theirs


def _is_of_others(ours: str, group: Group, key: str) -> bool:
    """Whether a setting is none of the wrapper's own, which change from step to step."""
    return not key.startswith(ours)


def _is_still(value: Any, before: Any) -> bool:
    """Whether nothing else has been written: an equal number is no other value, and which object it is depends on how it was loaded."""
    return value is before or (type(value) is type(before) and type(value) in _SCALARS and repr(value) == repr(before))


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else deepcopy(value)


def _tensors(group: Group) -> Iterator[tuple[str, tuple[Tensor, int, Tensor]]]:
    """The tensors in a group, as they are: a step may change them in place."""
    for key, value in group.items():
        if isinstance(value, Tensor):
            yield key, (value, value._version, value.detach().clone())


def _changed(tensors: dict[str, tuple[Tensor, int, Tensor]]) -> list[str]:
    return [key for key, (tensor, version, _) in tensors.items() if tensor._version != version]


def _seen(value: Any) -> tuple[Any, int]:
    return value, value._version if isinstance(value, Tensor) else 0
