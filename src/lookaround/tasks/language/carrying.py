"""What a recurrent network carries from a window of a text to the next one."""

from __future__ import annotations

import io

import torch
from torch import Tensor

State = tuple[Tensor, ...]
"""Hidden state and cell of each layer, each ``(1, N, width)``."""


class Carried:
    """The states of several streams. A window that comes twice, as in a closure that is called twice, starts twice from one state.

    Streams of negative numbers are evaluations, which start anew each time and are not saved.
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[int, State, State]] = {}

    def before(self, stream: int, position: int) -> State | None:
        """The state to read a window with; None at the start of a text, or where the window before was another."""
        if position == 0 or stream not in self._kept:
            return None
        at, before, after = self._kept[stream]
        return {position: before, position - 1: after}.get(at)

    def keep(self, stream: int, position: int, before: State, after: State) -> None:
        """Notes what a window was read with and what came out; nothing is backpropagated beyond a window's start."""
        self._kept[stream] = (position, before, tuple(part.detach() for part in after))

    def packed(self) -> Tensor:
        """The training streams as bytes, uint8: state dicts are copied and moved as if all of them held tensors."""
        buffer = io.BytesIO()
        torch.save({stream: kept for stream, kept in sorted(self._kept.items()) if stream >= 0}, buffer)
        return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)

    def unpack(self, packed: Tensor, like: Tensor) -> None:
        """Takes over the streams that `packed` gave, onto the device of ``like``."""
        buffer = io.BytesIO(packed.cpu().numpy().tobytes())
        self._kept = torch.load(buffer, map_location=like.device, weights_only=True)
