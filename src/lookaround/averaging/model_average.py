"""What all averages of a model have in common: putting the average into the model and taking it out again, copying, exporting."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from lookaround import holders, tensors
from lookaround.averaging.files import save_tensors
from lookaround.averaging.sharding import copy_across, layout, whole
from lookaround.averaging.slots import Slot, find_slots, is_main_process, leave_frozen, require_equal, shapes
from lookaround.averaging.states import require_list, require_tensors
from lookaround.averaging.structure import Structure, refuse_unaveraged
from lookaround.buffers import Policy

Point = Callable[[], AbstractContextManager[object]]
"""Makes a context in which the model holds the point to sample: ``optimizer.averaged`` of a Lookahead or Lookaround."""


def require_point(point: Point | None) -> None:
    """Raise TypeError for what does not make a context.

    >>> from contextlib import nullcontext
    >>> from lookaround.averaging.model_average import require_point
    >>> require_point(nullcontext)
    """
    if point is not None and (not callable(point) or isinstance(point, AbstractContextManager)):
        raise TypeError(f"point must make a context manager: pass optimizer.averaged, not called; got {point!r}")


def at_point(point: Point | None, sampled: list[Tensor]) -> AbstractContextManager[object]:
    """A context in which the tensors to be sampled hold the point; by default the average of the wrapper that holds them.

    Raises:
        ValueError: See :func:`lookaround.holders.averaged`.
    """
    return holders.averaged(sampled) if point is None else point()


class ModelAverage(ABC):
    """An average of the points a model passed through, in the model's own names.

    Subclasses collect points; this class shows the average. ``which`` numbers the averages of a subclass that keeps
    several.
    """

    def __init__(
        self,
        model: nn.Module,
        buffers: Mapping[str, Policy] | None = None,
        offload: bool = False,
        average_frozen: bool = False,
        point: Point | None = None,
    ) -> None:
        require_point(point)
        self._model = model
        self._offload = offload
        self._point = point
        slots = find_slots(model, buffers)
        refuse_unaveraged(slots)
        if offload and any(hasattr(s.tensor, "to_local") for s in slots):
            raise ValueError(
                "offload=True keeps plain tensors in host memory and cannot hold DTensors; use offload=False"
            )
        if not average_frozen:
            leave_frozen(slots)
        self._structure = Structure(model, slots)
        self._averaged_slots = [s for s in slots if s.policy == "average"]
        self._copied_slots = [s for s in slots if s.policy == "copy"]
        self._left_slots = [s for s in slots if s.policy == "leave"]
        self._copied: list[Tensor] | None = None
        self._reestimated: dict[int, dict[str, Tensor]] = {}
        self._shown: list[tuple[int, list[Tensor]]] = []
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

    def _values(self, which: int) -> list[Tensor]:
        """Values for all slots: the average, the copied tensors as they were at the last point, and what was re-estimated since."""
        mean = self._mean(which)
        self._synchronize()
        copied = self._copied if self._copied is not None else self._live(self._copied_slots)
        since = self._reestimated.get(which, {})
        return [since.get(s.name, value) for s, value in zip(self._slots, mean + copied, strict=True)]

    def _whole_model(self, which: int) -> tuple[list[Slot], list[Tensor]]:
        """All slots of the model with their values: those of the average, and what it leaves to the model."""
        self._check_model()
        self._keep_reestimated()
        return self._slots + self._left_slots, self._values(which) + self._live(self._left_slots)

    @contextmanager
    def _at_point(self) -> Iterator[list[Tensor]]:
        """What is averaged, with the point in it."""
        sources = self._sources()
        with at_point(self._point, sources):
            yield (
                sources if self._point is None else self._sources()
            )  # a context of the user's may put other tensors there

    def write_back(self, restart: Callable[[], object] | None = None, which: int = 0) -> None:
        """Write the average into the model for a training to go on from it.

        Args:
            restart: Called then, for an optimizer that keeps weights of its own: by default ``restart()`` of the Lookahead or Lookaround
                that holds the model's parameters; one that holds others too ends its round first, so that those go on from their average.
            which: The number of the average.

        Raises:
            ValueError: Called inside :meth:`averaged`, or there is no point in the average yet. Nothing is written then.
        """
        if restart is not None:
            self.copy_to(self._model, which)
            restart()
            return
        self._forbid_inside("write_back()")
        self._mean(which)  # raises before a round is ended
        holders.end_rounds_of_others(self._sources())
        self.copy_to(self._model, which)
        holders.restart(self._sources())

    def _sources(self) -> list[Tensor]:
        return self._live(self._averaged_slots)

    def _check_model(self) -> None:
        """Raise unless the model is made as it was at construction, and what was left as frozen still is.

        Raises:
            ValueError: It is not.
        """
        tensors.reshard(self._model)
        self._structure.check(self._model)
        for slot in self._left_slots:
            if slot.tensor.requires_grad:
                raise ValueError(
                    f"{slot.name!r} was frozen when the average was built, so it is not averaged, and can be trained now; "
                    "build a new average, or build it with average_frozen=True"
                )

    def _live(self, slots: list[Slot]) -> list[Tensor]:
        """The tensors as the model holds them now; the sharded ones where an evaluation under FSDP2 has gathered them."""
        tensors.reshard(self._model)
        return [s.tensor for s in slots]

    def _keep_copied(self) -> None:
        """Take over the tensors that are copied, as they are now, at a point; what was re-estimated before it is outdated."""
        now = self._live(self._copied_slots)
        if self._copied is None:
            self._copied = self._store(now, wide=False)
        tensors.copy_(self._copied, now)
        self._reestimated.clear()

    def _keep_reestimated(self) -> None:
        """Inside :meth:`averaged`: the buffers that the block has written since the average was put there."""
        if not self._shown:
            return
        which, put = self._shown[-1]
        for slot, value in zip(self._slots, put, strict=True):
            now = tensors.local(slot.tensor)
            if slot.is_buffer and not torch.equal(now, tensors.local(value).to(now)):
                (kept,) = self._load_list([slot], {slot.name: slot.tensor}, wide=False)
                self._reestimated.setdefault(which, {})[slot.name] = kept

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

    def _forbid_inside(self, what: str) -> None:
        if self._shown:
            raise ValueError(
                f"{what} inside averaged() would mix the average with the training weights; leave the block first"
            )

    @contextmanager
    def averaged(self, which: int = 0) -> Iterator[nn.Module]:
        """The model with the average in it, until the block ends or raises; then the training weights and buffers are
        back, bit for bit.

        What the block re-estimates, the buffers it writes (norm statistics by
        :func:`~lookaround.averaging.update_norm_stats`), belongs to this average from then on, wherever it is shown,
        copied, exported or saved, until the next point outdates it; unless the block raises. What it does to weights
        ends with it.

        Blocks may be nested. Inside, points can be neither added nor loaded. ``state_dict()`` taken
        inside holds the training weights too, so that a checkpoint of the model and of this average written there
        resumes the training: load the model first. Needs memory for one more copy of the model; in host memory with
        ``offload``. A copy (``copy.deepcopy``, pickle) made inside, of this object or of a model that holds it, is outside
        the block and its model holds the training weights.

        Raises:
            ValueError: There is no point in the average yet, or the model is no longer made as it was at construction.
        """
        self._check_model()
        self._keep_reestimated()
        values = self._values(which)
        live = self._live(self._slots)
        if not self._shown:
            self._training = [t.detach().to("cpu", copy=True) for t in live] if self._offload else tensors.clone(live)
        self._shown.append((which, values))
        try:
            tensors.copy_(live, values)
            yield self._model
            self._keep_reestimated()
        finally:
            self._shown.pop()
            self._put_back(live)

    def _put_back(self, live: list[Tensor]) -> None:
        """What the model held before a block: the average of the block around it, or the training weights."""
        if self._shown:
            outer, _ = self._shown[-1]
            self._shown[-1] = outer, self._values(outer)
        tensors.copy_(self._still(live), self._shown[-1][1] if self._shown else self._training)
        self._training = self._training if self._shown else []

    def _still(self, before: list[Tensor]) -> list[Tensor]:
        """The model's tensors now, but those of ``before`` where a forward pass that failed has left gathered ones."""
        now = self._live(self._slots)
        return [new if layout(new) == layout(old) else old for new, old in zip(now, before, strict=True)]

    def copy_to(self, model: nn.Module, which: int = 0) -> None:
        """Write the average, and what it leaves to the model, into ``model``, in its dtypes and on its device: this model,
        or another one with the same own names, sharded or not. Between a sharded and a whole model every process calls this.

        Raises:
            ValueError: A name or shape differs, or there is no point in the average yet. Nothing is written then.
        """
        if model is self._model:
            self._forbid_inside("copy_to() of the same model")
        slots, values = self._whole_model(which)
        point = dict(zip([s.name for s in slots], values, strict=True))
        targets = {s.name: s.tensor for s in find_slots(model)}
        require_equal(shapes(point), shapes(targets), "the model to copy the average to")
        copy_across([targets[name] for name in point], list(point.values()))

    def export(self, path: str | PathLike[str], which: int = 0) -> None:
        """Write the model with the average in it as a safetensors file under its own names and in its dtypes, atomically.

        Tied weights are written once; the metadata names their other names, as ``safetensors.torch.save_model`` does,
        so ``safetensors.torch.load_model`` reads the file. DTensors are gathered (every process calls this) and rank 0
        writes.

        Raises:
            ValueError: There is no point in the average yet.
            OSError: The file cannot be written; what was at ``path`` is still there.
        """
        slots, values = self._whole_model(which)
        self._write(path, slots, [whole(v).to(s.tensor.dtype) for s, v in zip(slots, values, strict=True)], {})

    def _write(
        self, path: str | PathLike[str], slots: list[Slot], values: list[Tensor], metadata: Mapping[str, str]
    ) -> None:
        """Whole ``values`` under the names of ``slots``, tied ones once; rank 0 writes."""
        tied = {alias: s.name for s in slots for alias in s.aliases[1:]}
        if is_main_process():
            save_tensors(path, self._named(slots, values), {"format": "pt", **tied, **metadata})

    def __getstate__(self) -> dict[str, Any]:
        self._keep_reestimated()
        return {**self.__dict__, "_shown": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._training:
            tensors.copy_([s.tensor for s in self._slots], self._training)
            self._training = []

    def _shared_state(self, averages: int) -> dict[str, Any]:
        """What every average saves beside its means: what was copied and re-estimated, and what :meth:`averaged` put aside."""
        self._keep_reestimated()
        return {
            "copied": self._named(self._copied_slots, self._copied) if self._copied else {},
            "reestimated": [dict(self._reestimated.get(which, {})) for which in range(averages)],
            **({"training": self._named(self._slots, self._training)} if self._shown else {}),
        }

    @staticmethod
    def _named(slots: list[Slot], values: list[Tensor]) -> dict[str, Tensor]:
        return {s.name: v.detach() for s, v in zip(slots, values, strict=True)}

    @staticmethod
    def _check_named(slots: list[Slot], values: Mapping[str, Tensor], what: str) -> None:
        require_tensors(values, what)
        require_equal(shapes({s.name: s.tensor for s in slots}), shapes(values), what)

    def _check_shared(self, state: Mapping[str, Any], points: int, averages: int) -> None:
        """Check what :meth:`_load_shared` loads, before anything is changed."""
        self._forbid_inside("load_state_dict()")
        self._check_model()
        buffers = {s.name: s for s in self._slots if s.is_buffer}
        if len(require_list(state["reestimated"], "re-estimated buffers")) != averages:
            raise ValueError(f"the state is damaged: it must have re-estimated buffers of {averages} averages")
        for values in state["reestimated"]:
            known = [
                buffers[name] for name in require_tensors(values, "the state's re-estimated buffers") if name in buffers
            ]
            self._check_named(known, values, "the state's re-estimated buffers")
        if points or state["copied"]:
            self._check_named(self._copied_slots, state["copied"], "the state's copied tensors")
        if "training" in state:
            self._check_named(self._slots, state["training"], "the state's training weights")

    def _load_shared(self, state: Mapping[str, Any]) -> None:
        copied = state["copied"]
        self._copied = self._load_list(self._copied_slots, copied, wide=False) if copied else None
        self._reestimated = {which: self._load_buffers(values) for which, values in enumerate(state["reestimated"])}
        if "training" in state:
            copy_across(self._live(self._slots), [state["training"][s.name] for s in self._slots])

    def _load_buffers(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        slots = [s for s in self._slots if s.name in values]
        return dict(zip([s.name for s in slots], self._load_list(slots, values, wide=False), strict=True))

    def _load_list(self, slots: list[Slot], values: Mapping[str, Tensor], *, wide: bool = True) -> list[Tensor]:
        """New tensors of this average with ``values``, converted to its precision (the model's, if not ``wide``) and device."""
        store = self._store(self._live(slots), wide=wide)
        copy_across(store, [values[s.name] for s in slots])
        return store
