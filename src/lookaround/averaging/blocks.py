"""An average over time in its model, for the time of a block: `ModelAverage.averaged`."""

from collections.abc import Callable, Iterable

from torch import Tensor

from lookaround import tensors
from lookaround.averaging.sharding import layout
from lookaround.showing import Showing, over


class Block(Showing):
    """What one block shows, and what the model held before it.

    A block right inside another of the same average keeps nothing: the values to come back are that average's.

    Args:
        average: whose it is.
        which: its number.
        live: what is written to.
        values: what is shown.
        now: the model's tensors as they are when the block is left.
        again: the values anew, with what has been re-estimated since.
        keep: of the average: keep what has been re-estimated.
        offload: keep what the model held in host memory.
    """

    def __init__(
        self,
        average: object,
        which: int,
        live: list[Tensor],
        values: list[Tensor],
        now: Callable[[], list[Tensor]],
        again: Callable[[], list[Tensor]],
        keep: Callable[[], object],
        *,
        offload: bool,
    ) -> None:
        super().__init__(live)
        self.which, self.values = which, values
        self._average, self._now, self._again, self._keep = average, now, again, keep
        beneath = over(live)[-1:]
        self._outer = next((b for b in beneath if isinstance(b, Block) and b._average is average), None)
        self._before: list[Tensor] = []
        if self._outer is None:
            self._before = [t.detach().to("cpu", copy=True) for t in live] if offload else tensors.clone(live)

    @property
    def title(self) -> str:
        return f"averaged() of a {type(self._average).__name__}"

    def aside(self) -> Iterable[tuple[Tensor, Tensor]]:
        return zip(self.tensors, self._before, strict=False)

    def cover(self) -> None:
        self._keep()

    def put_back(self) -> None:
        if self._outer is not None:
            self._outer.values = self._outer._again()
        tensors.copy_(self._still(), self._before if self._outer is None else self._outer.values)

    def _still(self) -> list[Tensor]:
        """The model's tensors now, but those of before where a forward pass that failed has left gathered ones."""
        now = self._now()
        return [new if layout(new) == layout(old) else old for new, old in zip(now, self.tensors, strict=True)]
