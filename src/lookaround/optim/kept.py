"""Sets of values kept beside live tensors: φ, the weights of branches that wait, training weights while an average is shown."""

from collections.abc import Hashable, Mapping, Sequence
from functools import cache
from operator import is_
from typing import Any

import torch
from torch import Tensor

from lookaround.packed import Layout, Packed, exchange, exchange_small, put, take

SLOW, TRAINING = "slow", "training"


@cache
def waiting(branch: int) -> str:
    """The name of the set that a waiting branch has."""
    return f"branch {branch}"


class Kept:
    """Named sets of values, one for each of some live tensors, found by the tensors' keys and never by their places.

    Args:
        offload: keep the sets of waiting branches in pinned host memory where the live tensors are on an accelerator.

    Attributes:
        is_small: whether every set is one small block beside the live tensors, of their dtype.
    """

    def __init__(self, offload: bool = False) -> None:
        self._offload = offload
        self._keys: list[Hashable] = []
        self._places: dict[Hashable, int] = {}
        self._live: list[Tensor] = []
        self._layout: Layout | None = Layout([])
        self._sets: dict[str, Sequence[Tensor]] = {}
        self._spare: Packed | None = None
        self._scratch: Tensor | None = None
        self.is_small = False

    def __contains__(self, name: str) -> bool:
        return name in self._sets

    @property
    def live(self) -> list[Tensor]:
        """The live tensors, in the order of every set."""
        return self._live

    @property
    def keys(self) -> list[Hashable]:
        """The keys of the live tensors."""
        return self._keys

    @property
    def names(self) -> list[str]:
        """The sets there are."""
        return list(self._sets)

    def follow(self, keys: Sequence[Hashable], live: Sequence[Tensor]) -> None:
        """Take note of what is live now; sets are laid out anew where that has changed, and begin with the live values of what is new."""
        same = len(keys) == len(self._keys) and all(map(is_, keys, self._keys))
        if same and self._layout is not None and self._layout.is_of(live):
            return
        known = {name: dict(zip(self._keys, values, strict=True)) for name, values in self._sets.items()}
        self._keys, self._live, self._layout = list(keys), list(live), Layout(live)
        self._spare = self._scratch = None
        self.is_small = self._layout.is_small and not self._offload
        self._places = {key: i for i, key in enumerate(keys)}
        for name, before in known.items():
            self._sets[name] = self._filled(name, before)

    def _filled(self, name: str, before: Mapping[Hashable, Tensor]) -> Packed:
        assert self._layout is not None
        new = Packed(self._layout, wide=name.startswith(SLOW), offload=self._offload and name.startswith("branch"))
        take(self._layout, new)
        with torch.no_grad():
            for key, tensor in zip(self._keys, new, strict=True):
                if key in before:
                    tensor.copy_(before[key])
        return new

    def keep(self, name: str) -> None:
        """Make a set of the live values."""
        self._sets[name] = self._filled(name, {})

    def adopt(self, name: str, values: Mapping[Any, Tensor]) -> None:
        """Make a set of copies of these values, in the live tensors' dtypes and on their devices."""
        self._sets[name] = self._filled(name, values)

    def drop(self, name: str) -> None:
        """Forget a set."""
        self._sets.pop(name, None)

    def clear(self) -> None:
        """Forget all sets."""
        self._sets.clear()
        self._spare = self._scratch = None

    def packed(self, name: str) -> Packed:
        """A set, laid out as the live tensors are now."""
        found = self._sets[name]
        assert isinstance(found, Packed)
        return found

    def values(self, name: str) -> dict[Hashable, Tensor]:
        """The tensors of a set by key; empty where there is none."""
        return dict(zip(self._keys, self._sets[name], strict=True)) if name in self._sets else {}

    def value(self, name: str, key: Hashable) -> Tensor | None:
        """One tensor of a set, if there is the set and the tensor in it."""
        return self._sets[name][self._places[key]] if name in self._sets and key in self._places else None

    def replace(self, name: str, key: Hashable, value: Tensor) -> None:
        """Take over the values of a tensor that a user has put in the place of ours."""
        with torch.no_grad():
            self._sets[name][self._places[key]].copy_(value)

    @property
    def layout(self) -> Layout:
        """How the live tensors are laid out."""
        assert self._layout is not None
        return self._layout

    @property
    def spare(self) -> Packed:
        """Of a small model: memory of a further set, which the next exchange or average may use."""
        if self._spare is None:
            self._spare = Packed(self.layout)
        return self._spare

    @property
    def scratch(self) -> Tensor:
        """Of a small model: flat memory as large as a set, which nobody keeps anything in."""
        if self._scratch is None:
            self._scratch = torch.empty_like(self.spare.blocks[0][0])
        return self._scratch

    def exchange(self, name: str, becomes: str) -> None:
        """Exchange the live values with a set, if there is one, which is then that of what was live. Quick, for every turn."""
        if name not in self._sets:
            return
        other = self.packed(name)
        if self.is_small:
            ours, self._spare = self.spare, other
            exchange_small(self.layout, other, ours)
        else:
            exchange(self.layout, ours := other)
        del self._sets[name]
        self._sets[becomes] = ours

    def rename(self, name: str, becomes: str) -> None:
        """Call a set, if there is one, by another name."""
        if name in self._sets:
            self._sets[becomes] = self._sets.pop(name)

    def restore(self, name: str) -> None:
        """Write a set into the live tensors."""
        put(self.layout, self.packed(name))

    def store(self, name: str) -> None:
        """Write the live values into a set."""
        take(self.layout, self.packed(name))

    def __getstate__(self) -> dict[str, Any]:
        """Plain lists: the memory of a copy is laid out when it is used."""
        return {
            **self.__dict__,
            "_layout": None,
            "_spare": None,
            "_scratch": None,
            "_places": {},
            "_sets": {name: list(of) for name, of in self._sets.items()},
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if not self._live:  # nothing will ever be laid out anew
            self._layout = Layout([])
            self._sets = {name: Packed(self._layout) for name in self._sets}
        self._places = {key: i for i, key in enumerate(self._keys)}

    def pairs(self, name: str) -> list[tuple[Tensor, Tensor]]:
        """Live tensors with the values of a set."""
        return list(zip(self._live, self._sets[name], strict=True)) if name in self._sets else []
