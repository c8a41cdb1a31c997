"""Whether anyone has written into parameter groups: asked at every step, so answered by one comparison of identities a group."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

Group = dict[str, Any]

_NAMES = ("params", "param_names")


class _Seen(NamedTuple):
    """A group as it was seen: the names of all its keys, what stood under those that are watched, the versions of tensors among that."""

    group: Group
    names: list[str]
    settings: Group
    versions: list[tuple[str, Tensor, int]]


class Watch:
    """Remembers the values under some keys of groups.

    Args:
        watched: whether a group's key is one of them, which the names of its keys alone decide; `params` never is.

    >>> groups = [{"params": [], "lr": 0.1}]
    >>> watch = Watch(lambda group, key: True)
    >>> watch.look(groups); watch.same(groups)
    True
    >>> groups[0]["lr"] = 0.2; watch.same(groups)
    False
    """

    def __init__(self, watched: Callable[[Group, str], bool]) -> None:
        self._watched = watched
        self._seen: list[_Seen] = []

    def look(self, groups: Sequence[Group]) -> None:
        """Remember the groups as they are. Quick where they have the keys that they had."""
        before = self._seen if len(self._seen) == len(groups) else [None] * len(groups)
        self._seen = [self._see(group, seen) for group, seen in zip(groups, before, strict=True)]

    def _see(self, group: Group, before: _Seen | None) -> _Seen:
        names = list(group)
        if before is not None and before.names == names:
            settings = before.settings
            new = {key: group[key] for key, value in settings.items() if group[key] is not value}
            settings.update(new)
            tensors = {**new, **{key: settings[key] for key, _, _ in before.versions}}
        else:
            tensors = settings = {key: group[key] for key in names if key not in _NAMES and self._watched(group, key)}
        versions = [(key, value, value._version) for key, value in tensors.items() if isinstance(value, Tensor)]
        return _Seen(group, names, settings, versions)

    def look_at(self, groups: Sequence[Group], keys: Sequence[set[str]]) -> None:
        """Remember what stands under some keys of groups that were looked at. Quick; nothing else that has changed is taken note of."""
        for group, written, seen in zip(groups, keys, self._seen, strict=False):
            new = {key: group[key] for key in written & seen.settings.keys() if key in group}
            seen.settings.update(new)
            others = [version for version in seen.versions if version[0] not in new]
            seen.versions[:] = others + [(k, v, v._version) for k, v in new.items() if isinstance(v, Tensor)]

    def settings(self) -> list[Group]:
        """What was seen of each group; of tensors copies, of what they are by now."""
        return [{**of.settings, **{key: value.detach().clone() for key, value, _ in of.versions}} for of in self._seen]

    def same(self, groups: Sequence[Group]) -> bool:
        """Whether these are the groups that were looked at, with the same objects in them, and no tensor was written to."""
        if len(groups) != len(self._seen):
            return False
        try:
            for i, (of, names, settings, versions) in enumerate(self._seen):
                group = groups[i]
                if group is not of or len(group) != len(names):
                    return False
                for key, value in settings.items():
                    if group[key] is not value:
                        return False
                for _, tensor, version in versions:
                    if tensor._version != version:
                        return False
        except KeyError:
            return False
        return True

    def forget(self) -> None:
        """Know of no groups: the next ones are other ones."""
        self._seen = []

    def __getstate__(self) -> dict[str, Any]:
        """A copy is of other groups."""
        return {"_watched": self._watched, "_seen": []}
