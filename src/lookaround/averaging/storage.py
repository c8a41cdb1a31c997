"""Where an average keeps values of a model's tensors: in which precision and memory, and how they get there from a state."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lookaround import tensors
from lookaround.averaging.sharding import copy_across
from lookaround.averaging.slots import Slot, require_equal, shapes
from lookaround.averaging.states import require_tensors


class Storage:
    """Values for slots of a model, in host memory if ``offload``."""

    def __init__(self, model: nn.Module, offload: bool) -> None:
        self._model, self._offload = model, offload

    def _live(self, slots: list[Slot]) -> list[Tensor]:
        """The tensors as the model holds them now; the sharded ones where an evaluation under FSDP2 has gathered them."""
        tensors.reshard(self._model)
        return [s.tensor for s in slots]

    def _store(self, like: list[Tensor], *, wide: bool = True) -> list[Tensor]:
        """New tensors for the values of ``like``, in averaging precision if ``wide``, in (pinned) host memory when offloading."""
        # Tensors made in inference mode could never again be written outside it.
        with torch.inference_mode(False), torch.no_grad():
            if not self._offload:
                return tensors.clone(like, wide=wide)
            pin = torch.cuda.is_available()
            dtypes = [tensors.wide_dtype(t.dtype) if wide else t.dtype for t in like]
            return [
                torch.empty_like(t, dtype=d, device="cpu", pin_memory=pin) for t, d in zip(like, dtypes, strict=True)
            ]

    def _synchronize(self) -> None:
        """Wait for copies into pinned memory, before the host reads them."""
        if self._offload and torch.cuda.is_initialized():
            torch.cuda.synchronize()

    def _load_list(self, slots: list[Slot], values: Mapping[str, Tensor], *, wide: bool = True) -> list[Tensor]:
        """New tensors of this average with ``values``, converted to its precision (the model's, if not ``wide``) and device."""
        store = self._store(self._live(slots), wide=wide)
        copy_across(store, [values[s.name] for s in slots])
        return store

    @staticmethod
    def _named(slots: list[Slot], values: list[Tensor]) -> dict[str, Tensor]:
        return {s.name: v.detach() for s, v in zip(slots, values, strict=True)}

    @staticmethod
    def _check_named(slots: list[Slot], values: Mapping[str, Tensor], what: str) -> None:
        require_tensors(values, what)
        require_equal(shapes({s.name: s.tensor for s in slots}), shapes(values), what)
