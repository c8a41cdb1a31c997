"""Whether anyone has written into parameter groups: asked at every step, so answered by one comparison of identities a group."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

Group = dict[str, Any]

_NAMES = ("params", "param_names")


# A group as it was seen: how many keys it had, what stood under those that are watched, and the versions of tensors among that.
_Seen = tuple[Group, int, list[tuple[str, Any]], list[tuple[Tensor, int]]]


class Watch:
    """Remembers the values under some keys of groups.

    Args:
        watched: whether a group's key is one of them; `params` never is.

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
        """Remember the groups as they are."""
        self._seen = [self._see(group) for group in groups]

    def _see(self, group: Group) -> _Seen:
        watched = [(key, group[key]) for key in group if key not in _NAMES and self._watched(group, key)]
        return group, len(group), watched, [(v, v._version) for _, v in watched if isinstance(v, Tensor)]

    def same(self, groups: Sequence[Group]) -> bool:
        """Whether these are the groups that were looked at, with the same objects in them, and no tensor was written to."""
        if len(groups) != len(self._seen):
            return False
        try:
            for i, (of, size, settings, versions) in enumerate(self._seen):
                group = groups[i]
                if group is not of or len(group) != size:
                    return False
                for key, value in settings:
                    if group[key] is not value:
                        return False
                for tensor, version in versions:
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
