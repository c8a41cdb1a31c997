"""What all averages of a model have in common: putting the average into the model and taking it out again, copying, exporting."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from lookaround import tensors
from lookaround.averaging.files import save_tensors
from lookaround.averaging.sharding import copy_across, layout, whole
from lookaround.averaging.slots import Policy, Slot, find_slots, is_main_process, require_equal, shapes


class ModelAverage(ABC):
    """An average of the points a model passed through, in the model's own names.

    Subclasses collect points; this class shows the average. ``which`` numbers the averages of a subclass that keeps
    several.
    """

    def __init__(self, model: nn.Module, buffers: Mapping[str, Policy] | None = None, offload: bool = False) -> None:
        self._model = model
        self._offload = offload
        slots = find_slots(model, buffers)
        if offload and any(hasattr(s.tensor, "to_local") for s in slots):
            raise ValueError(
                "offload=True keeps plain tensors in host memory and cannot hold DTensors; use offload=False"
            )
        self._averaged_slots = [s for s in slots if s.policy == "average"]
        self._copied_slots = [s for s in slots if s.policy == "copy"]
        self._copied: list[Tensor] | None = None
        self._shown: list[int] = []
        self._training: list[Tensor] = []

    @property
    def model(self) -> nn.Module:
        """The model whose points are averaged."""
        return self._model

    @property
    def _slots(self) -> list[Slot]:
        return self._averaged_slots + self._copied_slots

    @abstractmethod
    def _mean(self, which: int) -> list[Tensor]:
        """The average in the order of the averaged slots.

        Raises:
            ValueError: There is no such average, or it holds no point.
        """

    def _point(self, which: int) -> list[Tensor]:
        """Values for all slots: the average, and the copied tensors as they were at the last point."""
        mean = self._mean(which)
        self._synchronize()
        copied = self._copied if self._copied is not None else self._live(self._copied_slots)
        return mean + copied

    def _sources(self) -> list[Tensor]:
        self._check_modules()
        return self._live(self._averaged_slots)

    def _check_modules(self) -> None:
        """A module that was replaced still holds its old tensors: they would be averaged, and never be seen in the model."""
        here = {id(place) for module in self._model.modules() for place in (module._parameters, module._buffers)}
        for slot in self._slots:
            if id(slot.owner) not in here:
                raise ValueError(
                    f"the module that held {slot.name!r} has been replaced; build a new average after changing the model"
                )

    def _live(self, slots: list[Slot]) -> list[Tensor]:
        """The tensors as the model holds them now; the sharded ones where an evaluation under FSDP2 has gathered them."""
        tensors.reshard(self._model)
        return [s.tensor for s in slots]

    def _keep_copied(self) -> None:
        """Take over the tensors that are copied, as they are now."""
        now = self._live(self._copied_slots)
        if self._copied is None:
            self._copied = self._store(now)
        tensors.copy_(self._copied, now)

    def _store(self, like: list[Tensor]) -> list[Tensor]:
        """New tensors in averaging precision for the values of ``like``, in (pinned) host memory when offloading."""
        if not self._offload:
            return tensors.clone(like, wide=True)
        pin = torch.cuda.is_available()
        dtypes = [tensors.wide_dtype(t.dtype) for t in like]
        return [torch.empty_like(t, dtype=d, device="cpu", pin_memory=pin) for t, d in zip(like, dtypes, strict=True)]

    def _synchronize(self) -> None:
        """Wait for copies into pinned memory, before the host reads them."""
        if self._offload and torch.cuda.is_initialized():
            torch.cuda.synchronize()

    def _forbid_inside(self, what: str) -> None:
        if self._shown:
            raise ValueError(
                f"{what} inside averaged() would mix the average with the training weights; leave the block first"
            )

    @contextmanager
    def averaged(self, which: int = 0) -> Iterator[nn.Module]:
        """The model with the average in it, until the block ends or raises; then the training weights and buffers are
        back, bit for bit.

        Whatever the block does to the model (re-estimated norm statistics, say) ends with it, and the average itself
        does not change. Blocks may be nested. Inside, points can be neither added nor loaded. ``state_dict()`` taken
        inside holds the training weights too, so that a checkpoint of the model and of this average written there
        resumes the training: load the model first. Needs memory for one more copy of the model; in host memory with
        ``offload``. A copy (``copy.deepcopy``, pickle) made inside, of this object or of a model that holds it, is outside
        the block and its model holds the training weights.

        Raises:
            ValueError: There is no point in the average yet.
        """
        point = self._point(which)
        live = self._live(self._slots)
        if not self._shown:
            self._training = [t.detach().to("cpu", copy=True) for t in live] if self._offload else tensors.clone(live)
        self._shown.append(which)
        try:
            tensors.copy_(live, point)
            yield self._model
        finally:
            self._shown.pop()
            tensors.copy_(self._still(live), self._point(self._shown[-1]) if self._shown else self._training)
            self._training = self._training if self._shown else []

    def _still(self, before: list[Tensor]) -> list[Tensor]:
        """The model's tensors now, but those of ``before`` where a forward pass that failed has left gathered ones."""
        now = self._live(self._slots)
        return [new if layout(new) == layout(old) else old for new, old in zip(now, before, strict=True)]

    def copy_to(self, model: nn.Module, which: int = 0) -> None:
        """Write the average into ``model``, in its dtypes and on its device: this model, or another one with the same
        own names, sharded or not. Between a sharded and a whole model every process calls this.

        Raises:
            ValueError: A name or shape differs, or there is no point in the average yet. Nothing is written then.
        """
        if model is self._model:
            self._forbid_inside("copy_to() of the same model")
        point = dict(zip([s.name for s in self._slots], self._point(which), strict=True))
        targets = {s.name: s.tensor for s in find_slots(model)}
        require_equal(shapes(point), shapes(targets), "the model to copy the average to")
        copy_across([targets[name] for name in point], list(point.values()))

    def export(self, path: str | PathLike[str], which: int = 0) -> None:
        """Write the average as a safetensors file under the model's own names and in its dtypes, atomically.

        Tied weights are written once; the metadata names their other names, as ``safetensors.torch.save_model`` does,
        so ``safetensors.torch.load_model`` reads the file. DTensors are gathered (every process calls this) and rank 0
        writes.

        Raises:
            ValueError: There is no point in the average yet.
            OSError: The file cannot be written; what was at ``path`` is still there.
        """
        dtypes = [t.dtype for t in self._live(self._slots)]
        point = zip(self._slots, self._point(which), dtypes, strict=True)
        values = {slot.name: whole(value).to(dtype) for slot, value, dtype in point}
        tied = {alias: s.name for s in self._slots for alias in s.aliases[1:]}
        if is_main_process():
            save_tensors(path, values, {"format": "pt", **tied})

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shown": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._training:
            tensors.copy_([s.tensor for s in self._slots], self._training)
            self._training = []

    def _training_state(self) -> dict[str, Any]:
        """The weights and buffers that :meth:`averaged` has put aside, for ``state_dict``; nothing outside its block."""
        return {"training": self._named(self._slots, self._training)} if self._shown else {}

    @staticmethod
    def _named(slots: list[Slot], values: list[Tensor]) -> dict[str, Tensor]:
        return {s.name: v.detach() for s, v in zip(slots, values, strict=True)}

    @staticmethod
    def _check_named(slots: list[Slot], values: Mapping[str, Tensor], what: str) -> None:
        require_equal(shapes({s.name: s.tensor for s in slots}), shapes(values), what)

    def _check_shared(self, state: Mapping[str, Any], points: int) -> None:
        """Check what :meth:`_load_shared` loads, before anything is changed."""
        self._forbid_inside("load_state_dict()")
        if points or state["copied"]:
            self._check_named(self._copied_slots, state["copied"], "the state's copied tensors")
        if "training" in state:
            self._check_named(self._slots, state["training"], "the state's training weights")

    def _load_shared(self, state: Mapping[str, Any]) -> None:
        self._copied = self._load_list(self._copied_slots, state["copied"]) if state["copied"] else None
        if "training" in state:
            copy_across(self._live(self._slots), [state["training"][s.name] for s in self._slots])

    def _load_list(self, slots: list[Slot], values: Mapping[str, Tensor]) -> list[Tensor]:
        """New tensors of this average with ``values``, converted to its precision and device."""
        store = self._store(self._live(slots))
        copy_across(store, [values[s.name] for s in slots])
        return store
