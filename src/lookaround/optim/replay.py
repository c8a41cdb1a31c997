"""The settings that each minibatch of a round is trained with: written during the first branch's turn, and the same for the others.

`around(batches)` lets a branch take all steps of a round before the next one begins, and each of them has to see the learning rate of the
minibatch's place. A scheduler is stepped in the first branch's turn. What has changed in the groups from place to place stands there
under ``PREFIX.PLACE.KEY``, so that it is saved and loaded with everything else; ``PREFIX.next.KEY`` is what the next round begins with.
"""

from collections.abc import Callable, Sequence
from operator import is_
from typing import Any

import torch
from torch import Tensor

from lookaround.optim.watch import Group, Watch


class Replay:
    """Records settings in the first branch's turn, and puts them back in the others'.

    Args:
        prefix: of what stands in the groups.
        common: whether a group's key is one that users and schedulers write, for all branches.

    Attributes:
        holds: whether the groups hold noted settings; None where they have not been seen.
    """

    def __init__(self, prefix: str, common: Callable[[Group, str], bool]) -> None:
        self._prefix, self._common = prefix, common
        self._watch = Watch(common)
        self._seen: list[Group] = []
        self.holds: bool | None = None

    def record(self, groups: Sequence[Group], place: int) -> None:
        """Note the settings at a place of the first branch's turn. Quick where none has changed so far, as in what follows."""
        if not self.holds and self._watch.same(groups):
            return
        now = [self._settings(group) for group in groups]
        for group, old, new in zip(groups, (self._seen if place else []) or now, now, strict=False):
            changed = [key for key in new if key in old and not _same(old[key], new[key])]
            for key in {*changed, *self._noted(group)} & new.keys():
                for before in range(place):
                    group.setdefault(f"{self._prefix}.{before}.{key}", old.get(key))
                group[f"{self._prefix}.{place}.{key}"] = new[key]
        self._look(groups)

    def _look(self, groups: Sequence[Group]) -> None:
        self._seen = [self._settings(group) for group in groups]
        self.holds = any(map(self._noted, groups))
        self._watch.look(groups)

    def end_of_first(self, groups: Sequence[Group], places: int) -> None:
        """The first branch's turn is over: what holds now is for the next round."""
        self.record(groups, places)
        for group in groups if self.holds else ():
            for key in self._noted(group):
                group[f"{self._prefix}.next.{key}"] = group.pop(f"{self._prefix}.{places}.{key}")

    def put(self, groups: Sequence[Group], place: int | str) -> None:
        """Have the settings of a place in the groups; of ``"next"`` after the last branch's turn."""
        if self.holds is False:
            return
        for group in groups:
            for key in self._noted(group):
                if f"{self._prefix}.{place}.{key}" in group:
                    _assign(group, key, group[f"{self._prefix}.{place}.{key}"])
        self._look(groups)

    def check(self, groups: Sequence[Group], branch: int) -> None:
        """Raise ValueError where settings have changed in the turn of a branch that is not the first.

        To be called after its last minibatch; after each where settings are noted: what is put back from place to place would cover a
        change.
        """
        if self._watch.same(groups):
            return
        for group, old in zip(groups, self._seen, strict=False):
            for key, value in self._settings(group).items():
                if key in old and not _same(old[key], value):
                    raise ValueError(
                        f"{key!r} was changed in the turn of branch {branch}, when others have trained on these minibatches: in "
                        "around(batches), step schedulers in the turn of the first branch, after its step"
                    )

    def forget(self, groups: Sequence[Group]) -> None:
        """Begin a new round."""
        if self.holds is False:
            return
        self.look_again()
        for group in groups:
            for key in [key for key in group if key.startswith(f"{self._prefix}.")]:
                del group[key]

    def look_again(self) -> None:
        """Know nothing of the groups: others have been loaded."""
        self._seen, self.holds = [], None
        self._watch.forget()

    def _noted(self, group: Group) -> set[str]:
        head = f"{self._prefix}.0."
        return {key.removeprefix(head) for key in group if key.startswith(head)}

    def _settings(self, group: Group) -> Group:
        common = {key: value for key, value in group.items() if self._common(group, key)}
        return {k: v.detach().clone() if isinstance(v, Tensor) else v for k, v in common.items()}


def _same(old: Any, new: Any) -> bool:
    if isinstance(old, Tensor) and isinstance(new, Tensor):
        return torch.equal(old, new)
    return is_(old, new) or (type(old) is type(new) and bool(old == new))


@torch.no_grad()
def _assign(group: Group, key: str, value: Any) -> None:
    """Write a setting as a scheduler does: a tensor in place."""
    if isinstance(group.get(key), Tensor) and isinstance(value, Tensor):
        group[key].copy_(value)
    else:
        group[key] = value
