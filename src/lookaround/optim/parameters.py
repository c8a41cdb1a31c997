"""The parameters in an optimizer's groups, which users may change at any time: quickly told whether they are those of before."""

from collections.abc import Iterable, Sequence
from itertools import chain
from operator import attrgetter, is_
from typing import Any

from torch import Tensor

from lookaround.packed import addresses
from lookaround.tensors import ORDINARY

_IS_TRAINED = attrgetter("requires_grad")
_ADDRESS = Tensor.data_ptr


class Parameters:
    """Those that were there when they were last followed, and where their memory was."""

    def __init__(self) -> None:
        self._all: list[Tensor] = []
        self._frozen: list[Tensor] = []
        self._addresses: list[int] | None = None

    def changed(self, groups: Sequence[dict[str, Any]]) -> bool:
        """Whether there are others than before, or some are trained that were not. Quick: for every step."""
        count = len(self._all)
        for group in groups:
            count -= len(group["params"])
        if self._frozen:
            return count != 0 or self._is_any_trained()
        return count != 0

    def _is_any_trained(self) -> bool:
        return any(map(_IS_TRAINED, self._frozen))

    def same(self, groups: Sequence[dict[str, Any]]) -> bool:
        """Whether they and their memory are those of before. Quick: for every exchange."""
        if self._addresses is None or (self._frozen and self._is_any_trained()):
            return False
        params = groups[0]["params"] if len(groups) == 1 else chain.from_iterable([g["params"] for g in groups])
        return [*map(_ADDRESS, params)] == self._addresses

    def are(self, groups: Sequence[dict[str, Any]]) -> bool:
        """Whether they are those of before, wherever their memory is. Quick: for every round."""
        return len(groups) == 1 and not self.differ(groups[0]["params"])

    def differ(self, params: list[Tensor]) -> bool:
        """Whether these are others, in another order, or some are trained that were not."""
        same = len(params) == len(self._all) and all(map(is_, params, self._all))
        return not same or self._is_any_trained()

    def follow(self, params: list[Tensor], had: Iterable[Tensor]) -> list[Tensor]:
        """Take note of all there are now. Those that have a part in a round: trained, or among those that ``had`` one."""
        if self.differ(params):
            known = {id(p) for p in had}
            self._all, self._frozen = params, [p for p in params if not (p.requires_grad or id(p) in known)]
        self._addresses = addresses(params) if {*map(type, params)} <= ORDINARY else None
        frozen = {id(p) for p in self._frozen}
        return [p for p in params if id(p) not in frozen]

    def __getstate__(self) -> dict[str, Any]:
        """What is kept beside a copy is laid out when it is used."""
        return {**self.__dict__, "_addresses": None}
