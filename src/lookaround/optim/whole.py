"""State dicts of branches over processes: the same tensors as one process with all branches would save, under the same labels.

Between two passes a process that holds branches s, s + 1, … has branch s in the model and the others waiting, numbered from there; one
process with all of them has branch 0 in the model. So a process's part of the whole is its state dict with other numbers, and the weights
and buffers of its first branch, if that is not branch 0, beside those of the others. Put together the parts are one process's state dict
to the letter, and whatever number of processes goes on from it takes its own part out again. Plain data in, plain data out.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import and_
from typing import Any

from torch import Tensor

from lookaround.optim.schema import count

Group = dict[str, Any]

_WAITING = re.compile(r"branch\.(\d+)\.(.*)", re.DOTALL)
_NAMES = ("params", "param_names")


@dataclass
class Live:
    """What a process has in its model: the weights by parameter number and the buffers by name of its first branch.

    Attributes:
        weights, buffers: empty for branch 0, whose are the model's own.
        first: the number of the parameter in whose entry stands what belongs to no single one.
    """

    weights: dict[int, Tensor] = field(default_factory=dict)
    buffers: dict[str, Tensor] = field(default_factory=dict)
    first: int = 0


class Labels:
    """Reads and writes the labels of one wrapper.

    Args:
        name: of the wrapper.
    """

    def __init__(self, name: str) -> None:
        self.prefix, self._own = f"{name}.", f"{name}_inner."
        self.counters = {key: f"{name}_{key}" for key in ("branch", "tensors", "entries", "step", "skipped")}

    def waiting(self, branch: int, rest: str) -> str:
        """The label of something of a waiting branch."""
        return f"{self.prefix}branch.{branch}.{rest}"

    def read(self, label: Any) -> tuple[int | None, str]:
        """The number of a waiting branch and what follows; None and the label itself for what is not a waiting branch's."""
        own = isinstance(label, str) and label.startswith(self.prefix)
        found = _WAITING.fullmatch(label.removeprefix(self.prefix)) if own else None
        return (int(found[1]), found[2]) if found else (None, label)

    def is_common(self, label: Any) -> bool:
        """Whether a label is of something of no branch: φ, an outer optimizer's state, a mean under way."""
        own = isinstance(label, str) and label.startswith(self.prefix)
        return own and self.read(label)[0] is None and label != f"{self.prefix}dtype"

    def of_row(self, label: Any) -> int | None:
        """The first branch of the row whose losses on the wire stand under a label; None for other labels."""
        return self._after("lost.", label)

    def of_branch(self, label: Any) -> int | None:
        """The branch whose weights were sent to an average under way, which stand under a label; None for other labels."""
        return self._after("sent.", label)

    def _after(self, kind: str, label: Any) -> int | None:
        head = self.prefix + kind
        return int(label.removeprefix(head)) if isinstance(label, str) and label.startswith(head) else None

    def is_wanted(self, label: Any, local: range) -> bool:
        """Whether a process that holds some branches takes what stands under a label of the whole."""
        if (row := self.of_row(label)) is not None:
            return row == local.start
        if (sent := self.of_branch(label)) is not None:
            return sent in local
        branch = self.read(label)[0]
        return branch in local if branch is not None else not local.start or self.is_common(label)

    def own(self, key: Any) -> tuple[int | None, str]:
        """The number of the branch and the key of a value of a group that is each branch's own; None for others."""
        if not (isinstance(key, str) and key.startswith(self._own)):
            return None, key
        number, _, rest = key.removeprefix(self._own).partition(".")
        return int(number), rest

    def own_key(self, branch: int, key: str) -> str:
        """The inverse; branch 0 stands for the mark that a key is each branch's own."""
        return f"{self._own}{branch}.{key}"


def part(state_dict: Group, labels: Labels, local: range, live: Live) -> Group:
    """This process's part of the whole: its state dict with the branches' own numbers."""
    start = local.start
    state: dict[Any, Any] = {}
    for key, entry in state_dict["state"].items():
        if isinstance(key, int):
            state[key] = dict(_numbered(entry, labels, start))
        elif start:
            state.setdefault(live.first, {})[labels.waiting(start, f"other.{key}")] = entry
        else:
            state[key] = entry
    if start:
        for number, weight in live.weights.items():
            state.setdefault(number, {})[labels.waiting(start, "weights")] = weight
        first = state.setdefault(live.first, {})
        first |= {labels.waiting(start, f"buffers.{name}"): buffer for name, buffer in live.buffers.items()}
    beside = {k: v for k, v in state_dict.items() if k not in ("state", "param_groups")}
    groups = [dict(_numbered_group(group, labels, start)) for group in state_dict["param_groups"]]
    return {**dict(_numbered(beside, labels, start, "")), "state": state, "param_groups": groups}


def _numbered(entry: Mapping[Any, Any], labels: Labels, start: int, inner: str = "inner.") -> Iterator[tuple[Any, Any]]:
    for label, value in entry.items():
        offset, rest = labels.read(label)
        if offset is not None:
            yield labels.waiting(start + offset, rest), value
        elif not start or labels.of_row(label) is not None or labels.of_branch(label) is not None:
            yield label, value
        elif not labels.is_common(label):
            yield labels.waiting(start, f"{inner}{label}"), value


def _numbered_group(group: Group, labels: Labels, start: int) -> Iterator[tuple[Any, Any]]:
    for key, value in group.items():
        offset, rest = labels.own(key)
        yield (labels.own_key(start + offset, rest) if offset else key), value
        if start and offset == 0:
            yield labels.own_key(start, rest), group.get(rest)


def merged(parts: Sequence[tuple[range, Group]], labels: Labels) -> Group:
    """The whole: the state dict of one process with all branches, between two passes."""
    state: dict[Any, Any] = {}
    beside: Group = {}
    for _, of in parts:
        for key, entry in of["state"].items():
            state[key] = {**state.get(key, {}), **entry} if isinstance(key, int) else entry
        beside |= {key: value for key, value in of.items() if key not in ("state", "param_groups")}
    columns = zip(*(of["param_groups"] for _, of in parts), strict=True)
    groups = [_merged_group([*zip((local for local, _ in parts), column, strict=True)], labels) for column in columns]
    return _counted({**beside, "state": dict(sorted(state.items(), key=_order)), "param_groups": groups}, labels, 0)


def _order(item: tuple[Any, Any]) -> tuple[bool, Any]:
    return (not isinstance(item[0], int), item[0] if isinstance(item[0], int) else 0)


def _merged_group(rows: Sequence[tuple[range, Group]], labels: Labels) -> Group:
    """Settings that differ between rows without being marked so have been written by inner steps: each branch's own."""
    base = {**rows[0][1], **_step(rows, labels)}
    marked = {rest for _, group in rows for key in group if labels.own(key)[0] == 0 for rest in [labels.own(key)[1]]}
    plain = [key for key in base if key not in _NAMES and not str(key).startswith(labels.prefix[:-1] + "_")]
    differing = {key for key in plain if any(not _same(base[key], group.get(key)) for _, group in rows[1:])}
    for key in marked | differing:
        base[labels.own_key(0, key)] = True
        for local, group in rows:
            for branch in local if local.start else local[1:]:
                name = labels.own_key(branch, key)
                base[name] = group.get(name, group.get(key))
    return base


def _step(rows: Sequence[tuple[range, Group]], labels: Labels) -> Group:
    """Where the round is: one process counts no step that no branch has made."""
    step, skipped = labels.counters["step"], labels.counters["skipped"]
    by_all = reduce(and_, (group.get(skipped, 0) for _, group in rows))
    return {step: rows[0][1].get(step, 0) - by_all.bit_count(), skipped: 0}


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and bool((one == other).all())
    return bool(one == other)


def _counted(state_dict: Group, labels: Labels, branch: int) -> Group:
    """With the counts that a state dict is checked by, and the branch that is in the model."""
    state = state_dict["state"]
    now = {"branch": branch, "tensors": count(state), "entries": sum(map(bool, state.values()))}
    keys = {labels.counters[key]: value for key, value in now.items()}
    return {**state_dict, "param_groups": [{**group, **keys} for group in state_dict["param_groups"]]}


def taken(whole: Group, labels: Labels, local: range) -> tuple[Group, Live]:
    """Of the whole, the state dict of a process that holds some branches, and what is to be in its model."""
    start, live = local.start, Live()
    state: dict[Any, Any] = {} if start else {k: v for k, v in whole["state"].items() if not isinstance(k, int)}
    for number, entry in whole["state"].items():
        for label, value in entry.items() if isinstance(number, int) else ():
            if not labels.is_wanted(label, local):
                continue
            branch, rest = labels.read(label)
            if branch is not None and branch == start:
                _take_live(state, live, number, rest, value)
            else:
                state.setdefault(number, {})[label if branch is None else labels.waiting(branch - start, rest)] = value
    beside = {k: v for k, v in whole.items() if k not in ("state", "param_groups")}
    groups = [dict(_taken_group(group, labels, local)) for group in whole["param_groups"]]
    taken_beside = dict(_taken_beside(beside, labels, local))
    return _counted({**taken_beside, "state": state, "param_groups": groups}, labels, start), live


def _take_live(state: dict[Any, Any], live: Live, number: int, rest: str, value: Any) -> None:
    kind, _, key = rest.partition(".")
    if rest == "weights":
        live.weights[number] = value
    elif kind == "buffers":
        live.buffers[key] = value
    elif kind == "other":
        state[key] = value
    else:
        state.setdefault(number, {})[key] = value


def _taken_beside(beside: Group, labels: Labels, local: range) -> Iterator[tuple[str, Any]]:
    for key, value in beside.items():
        branch, rest = labels.read(key)
        if branch == local.start or (branch is None and not local.start):
            yield rest, value
        elif branch is not None and branch in local:
            yield labels.waiting(branch - local.start, rest), value


def _taken_group(group: Group, labels: Labels, local: range) -> Iterator[tuple[str, Any]]:
    mine = {
        rest: value
        for key, value in group.items()
        for branch, rest in [labels.own(key)]
        if branch == local.start and branch
    }
    for key, value in group.items():
        branch, rest = labels.own(key)
        if branch is None:
            yield key, mine.get(key, value)
        elif len(local) > 1 and (branch == 0 or branch in local[1:]):
            yield labels.own_key(branch - local.start if branch else 0, rest), value
