"""What an average writes to, as it was before: for processes that come and go, where an average may fail in the middle."""

from collections.abc import Iterator
from copy import deepcopy

from torch import Tensor

from lookaround.optim.run import Run
from lookaround.tensors import clone, copy_


class Before:
    """A copy of everything that an average may change, to be put back.

    Weights and buffers, φ, the outer optimizer, and momentum where averages touch it: for as long as an average lasts that is one more copy
    of each of them.

    Args:
        run: of a wrapper that holds one branch here.
    """

    def __init__(self, run: Run) -> None:
        run.branches.follow()
        self._own = run.common.own
        self._labels = {label: dict(of) for label, of in self._own.items()}
        self._tensors = list(_written(run))
        self._copies = clone(self._tensors)
        self._outer = run.common.outer
        if self._outer is not None:
            self._entries = {key: deepcopy(entry) for key, entry in self._outer.entries().items()}
            self._settings = deepcopy(self._outer.settings())

    def put_back(self) -> None:
        """Have everything as it was."""
        self._own.clear()
        self._own.update(self._labels)
        copy_(self._tensors, self._copies)
        if self._outer is not None:
            self._outer.load_entries(self._entries)
            self._outer.load_settings(self._settings)


def _written(run: Run) -> Iterator[Tensor]:
    branches = run.branches
    for kept in branches.kept:
        yield from kept.live
    inside = branches.inside(branches.current).values()
    for each in (run, *inside):
        for param in branches.params():
            yield from (value for value in each.own.entry(param).values() if isinstance(value, Tensor))
    if run.common.moves_momentum:
        for entry in branches.entries(branches.current).values():
            yield from (value for value in entry.values() if isinstance(value, Tensor))
