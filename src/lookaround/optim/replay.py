"""The settings that each minibatch of a round is trained with: written during the first branch's turn, and the same for the others.

`around(batches)` lets a branch take all steps of a round before the next one begins, and each of them has to see the learning rate of the
minibatch's place. A scheduler is stepped in the first branch's turn. In a state dict what has changed from place to place stands in the
groups, under ``PREFIX.PLACE.KEY``; ``PREFIX.next.KEY`` is what the next round begins with.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lookaround.optim.watch import Group, Watch

_NEXT = "next"
# The settings of all groups at one place.
_Settings = list[Group]


class Replay:
    """Records settings in the first branch's turn, and puts them back in the others'.

    Args:
        prefix: of what stands in a state dict's groups.
        common: whether a group's key is one that users and schedulers write, for all branches.

    Attributes:
        holds: whether there is something to put back: settings have changed in the first branch's turn, and it is over.
    """

    def __init__(self, prefix: str, common: Callable[[Group, str], bool]) -> None:
        self._head, self._common = f"{prefix}.", common
        self._watch = Watch(common)
        # What the groups hold, as far as the watch has seen; of this round where it is known.
        self._now: _Settings = []
        self._forget()

    def _forget(self) -> None:
        # Of each place from the first on; none as long as nothing has changed.
        self._places: list[_Settings] = []
        self._next: _Settings | None = None
        # The keys of each group that have not been the same at all places.
        self._changing: list[set[str]] = []
        # What has been put into the groups since the watch has looked: where, what stands there now, its version, what it has to be.
        self._written: list[tuple[Group, str, Any, int, Any]] = []
        self._is_known = self.holds = False

    def record(self, groups: Sequence[Group], place: int) -> None:
        """Note the settings at a place of the first branch's turn. Quick where none has changed yet."""
        if not place:
            self._forget()
        if self._watch.same(groups):
            self._is_known = True
            self._places[place:] = self._places[-1:]
            return
        before, was_known = self._now, self._is_known
        self._look(groups)
        if place:
            # Of places before the first change nothing has been noted so far.
            self._places += [before if was_known else self._now] * (place - len(self._places))
            self._places[place:] = [self._now]
            self._note_changes(self._places[place - 1])

    def _look(self, groups: Sequence[Group]) -> None:
        self._watch.look(groups)
        self._now, self._is_known = self._watch.settings(), True

    def _note_changes(self, before: _Settings) -> None:
        fewer = len(before) < len(self._now)
        if fewer or any(new.keys() - old.keys() for old, new in zip(before, self._now, strict=False)):
            self._fill()
        self._changing += [set() for _ in self._now[len(self._changing) :]]
        for keys, old, new in zip(self._changing, before, self._now, strict=False):
            changed = [key for key, value in new.items() if old[key] is not value]
            keys.update([key for key in changed if not _same(old[key], new[key])])

    def _fill(self) -> None:
        """Give all places before what they lack of what there is now: groups and keys that have come since."""
        for settings in self._places[:-1]:
            settings += [{} for _ in self._now[len(settings) :]]
            for old, new in zip(settings, self._now, strict=False):
                old |= {key: new[key] for key in new.keys() - old.keys()}

    def end_of_first(self, groups: Sequence[Group], places: int) -> None:
        """The first branch's turn is over: what holds now is for the next round."""
        self.record(groups, places)
        self._next = self._places.pop() if self._places else None
        self.holds = any(self._changing)

    def put(self, groups: Sequence[Group], place: int) -> None:
        """Have the settings of a place in the groups, if the first branch was there."""
        if not self._is_known:
            self._look(groups)
        if self.holds and place < len(self._places):
            self._put(groups, self._places[place])

    def _put(self, groups: Sequence[Group], settings: _Settings) -> None:
        self._written = []
        for group, keys, values in zip(groups, self._changing, settings, strict=False):
            for key in keys & values.keys():
                now = _assigned(group, key, values[key])
                self._written.append((group, key, now, _version(now), values[key]))

    def check(self, groups: Sequence[Group], branch: int, *, ends: bool) -> None:
        """Raise ValueError where settings have changed in the turn of a branch that is not the first.

        To be called after each of its minibatches: what is put back would cover a change. Quick but where the turn ``ends``.
        """
        for group, key, before, version, value in self._written:
            now = group.get(key, before)
            if (now is not before or _version(now) != version) and not _same(value, now):
                raise _out_of_turn(key, branch)
        if ends:
            self._settle(groups)
            self._check_all(groups, branch)

    def _settle(self, groups: Sequence[Group]) -> None:
        """Have seen what was put."""
        if self._written:
            self._watch.look_at(groups, self._changing)
            self._now, self._written = self._watch.settings(), []

    def _check_all(self, groups: Sequence[Group], branch: int) -> None:
        if self._watch.same(groups):
            return
        for group, settings in zip(groups, self._now, strict=False):
            for key, value in settings.items():
                if key in group and self._common(group, key) and not _same(value, group[key]):
                    raise _out_of_turn(key, branch)

    def end(self, groups: Sequence[Group]) -> None:
        """The last branch's turn is over: have what the next round begins with in the groups, and begin anew."""
        if self.holds and self._next is not None:
            self._put(groups, self._next)
            self._settle(groups)
        self._forget()

    # -- checkpoints ----------------------------------------------------------------------------------------------------------

    def saved(self) -> list[Group]:
        """What a state dict says of it in each group."""
        named: list[tuple[str, _Settings]] = [(str(place), of) for place, of in enumerate(self._places)]
        named += [(_NEXT, self._next)] if self._next else []
        said: list[Group] = [{} for _ in self._changing]
        for name, settings in named:
            for of, keys, values in zip(said, self._changing, settings, strict=False):
                of |= {f"{self._head}{name}.{key}": values[key] for key in sorted(keys & values.keys())}
        return said

    def load(self, groups: Sequence[Group]) -> None:
        """Take what a state dict said of it out of the groups."""
        found = [self._taken_from(group) for group in groups]
        self._forget()
        self._watch.forget()
        names = {name for of in found for name in of}
        rows = {name: [of.get(name, {}) for of in found] for name in names}
        self._next = rows.pop(_NEXT, None)
        places = range(1 + max((int(name) for name in rows if name.isdecimal()), default=-1))
        self._places = [rows.get(str(place), [{} for _ in found]) for place in places]
        self._changing = [{key for settings in of.values() for key in settings} for of in found]
        self.holds = any(self._changing)

    def _taken_from(self, group: Group) -> dict[str, Group]:
        """Settings by the name of the place."""
        found: dict[str, Group] = {}
        for name in [name for name in group if name.startswith(self._head)]:
            place, _, key = name.removeprefix(self._head).partition(".")
            found.setdefault(place, {})[key] = group.pop(name)
        return found


def _out_of_turn(key: str, branch: int) -> ValueError:
    return ValueError(
        f"{key!r} was changed in the turn of branch {branch}, when others have trained on these minibatches: in "
        "around(batches), step schedulers in the turn of the first branch, after its step"
    )


def _same(old: Any, new: Any) -> bool:
    if isinstance(old, Tensor) and isinstance(new, Tensor):
        return torch.equal(old, new)
    return old is new or (type(old) is type(new) and bool(old == new))


def _version(value: Any) -> int:
    return value._version if isinstance(value, Tensor) else 0


def _assigned(group: Group, key: str, value: Any) -> Any:
    """Write a setting as a scheduler does, a tensor in place; give what stands there then."""
    if isinstance(value, Tensor) and isinstance(group.get(key), Tensor):
        with torch.no_grad():
            group[key].copy_(value)
    else:
        group[key] = value
    return group[key]
