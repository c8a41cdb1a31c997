"""Whether what forward passes do depends on the order of steps: then minibatches are trained on one after the other."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from lookaround.experiment.checkpoints import drawn_since, random_state
from lookaround.experiment.team import Team
from lookaround.methods import Method


class Order:
    """Finds out while a run goes on: random numbers that a network draws, and buffers that branches share and it writes, come in it.

    Args:
        method: trains.
        team: finds out together, as a process alone may come to something.

    Attributes:
        matters: None before the first minibatch, which has to be trained on alone.
    """

    def __init__(self, method: Method, team: Team) -> None:
        self._method, self._team = method, team
        self.matters: bool | None = None

    @contextmanager
    def watched(self, minibatches: int) -> Iterator[None]:
        """Around the training on so many minibatches. A RuntimeWarning where it shows only when it has mattered already."""
        if self.matters or (self.matters is False and minibatches == 1):
            yield
            return
        random, buffers = random_state(), self._buffers()
        yield
        shows = drawn_since(random) or self._written_since(buffers)
        matters = bool(self._team.agreed(int(shows)))
        if matters and self.matters is False:
            warnings.warn(
                "the network has begun to draw random numbers, or to write a buffer that branches share, in the middle of the run: the "
                "order in which that came depends on --checkpoint-every; from now on minibatches are trained on one after the other",
                RuntimeWarning,
                stacklevel=2,
            )
        self.matters = matters

    def _buffers(self) -> list[tuple[Tensor, int]]:
        return [(buffer, buffer._version) for buffer in self._method.shared_buffers()]

    def _written_since(self, before: list[tuple[Tensor, int]]) -> bool:
        now = self._buffers()
        same = [buffer is of and version == at for (buffer, version), (of, at) in zip(now, before, strict=False)]
        return len(now) != len(before) or not all(same)
