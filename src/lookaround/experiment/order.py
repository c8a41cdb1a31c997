"""Whether what forward passes do depends on the order of steps: then minibatches are trained on one after the other."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lookaround.experiment.checkpoints import drawn_since, random_state
from lookaround.experiment.team import Team
from lookaround.methods import Method


class Order:
    """Finds out while a run goes on: a network draws random numbers, or writes buffers that branches share, as steps come.

    Args:
        method: trains.
        team: has to go on alike, whichever process it shows on.

    Attributes:
        matters: None before the first minibatch, which has to be trained on alone.
    """

    def __init__(self, method: Method, team: Team) -> None:
        self._method, self._team = method, team
        self._first: list[Tensor] | None = None
        self.matters: bool | None = None

    @contextmanager
    def watched(self, minibatches: int) -> Iterator[None]:
        """Around the training on so many minibatches. A RuntimeWarning where it shows only when it has mattered already."""
        if self.matters or (self.matters is False and minibatches == 1):
            yield
            return
        random, versions = random_state(), self._versions()
        if self._first is None:
            self._first = [buffer.clone() for buffer in self._method.shared_buffers()]
        yield
        # Not everything that writes says so: at first values are compared.
        written = (self.matters is None or self._versions() != versions) and self._has_written()
        matters = bool(self._team.agreed(int(written or drawn_since(random))))
        if matters and self.matters is False:
            self._warn()
        self.matters = matters

    def _versions(self) -> list[tuple[int, int]]:
        return [(id(buffer), buffer._version) for buffer in self._method.shared_buffers()]

    def _has_written(self) -> bool:
        """Whether shared buffers are others than they were at first; one may have been put back to what it was."""
        now, first = self._method.shared_buffers(), self._first or []
        return len(now) != len(first) or not all(map(torch.equal, now, first))

    def _warn(self) -> None:
        warnings.warn(
            "the network has begun to draw random numbers, or to write a buffer that branches share, in the middle of the run: the "
            "order in which that came depends on --checkpoint-every; from now on minibatches are trained on one after the other",
            RuntimeWarning,
            stacklevel=4,
        )
