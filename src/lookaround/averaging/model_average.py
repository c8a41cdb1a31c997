"""What all averages of a model have in common: putting the average into the model and taking it out again, copying, exporting."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from lookaround import holders, showing, tensors
from lookaround.averaging.blocks import Block
from lookaround.averaging.files import save_tensors
from lookaround.averaging.sharding import copy_across, whole
from lookaround.averaging.slots import Slot, find_slots, is_main_process, leave_frozen, require_equal, shapes
from lookaround.averaging.states import require_list, require_tensors
from lookaround.averaging.storage import Storage
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


@contextmanager
def at_point(point: Point | None, sampled: list[Tensor]) -> Iterator[None]:
    """A context in which the tensors to be sampled hold the point; by default the average of the wrapper that holds them.

    Raises:
        ValueError: The model holds the average of something else to look at; see :func:`lookaround.holders.averaged` too.
    """
    if point is None:
        showing.refuse("taking a point", sampled, points=True)
    with holders.averaged(sampled) if point is None else holders.given(point):
        yield


class ModelAverage(Storage, ABC):
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
        super().__init__(model, offload)
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
        self._entered: list[Block] = []

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
            ValueError: Called while the model holds something to look at (inside :meth:`averaged`, or that of an optimizer), or in the
                body of a loop over ``optimizer.around()``, or there is no point in the average yet. Nothing is written then.
        """
        self._require_writable("write_back()")
        self._check_model()
        values = self._values(which)
        if restart is None:
            holders.end_rounds_of_others(self._sources())
        tensors.copy_(self._live(self._slots), values)
        if restart is None:
            holders.restart(self._sources())
        else:
            restart()

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

    def _keep_copied(self) -> None:
        """Take over the tensors that are copied, as they are now, at a point; what was re-estimated before it is outdated."""
        now = self._live(self._copied_slots)
        if self._copied is None:
            self._copied = self._store(now, wide=False)
        tensors.copy_(self._copied, now)
        self._reestimated.clear()

    def _keep_reestimated(self) -> None:
        """Inside :meth:`averaged`: the buffers that the block has written since the average was put there; what else is shown over
        it has had them kept before."""
        blocks = self._blocks
        if not blocks or showing.is_covered(blocks[-1]):
            return
        which = blocks[-1].which
        for slot, value in zip(self._slots, blocks[-1].values, strict=True):
            now = tensors.local(slot.tensor)
            if slot.is_buffer and not torch.equal(now, tensors.local(value).to(now)):
                (kept,) = self._load_list([slot], {slot.name: slot.tensor}, wide=False)
                self._reestimated.setdefault(which, {})[slot.name] = kept

    @property
    def _blocks(self) -> list[Block]:
        """The blocks of :meth:`averaged` that are open, or left and still beneath another one."""
        self._entered = [block for block in self._entered if showing.is_open(block)]
        return self._entered

    def _forbid_inside(self, what: str) -> None:
        if self._blocks:
            raise ValueError(
                f"{what} inside averaged() would mix the average with the training weights; leave the block first"
            )

    def _require_writable(self, what: str) -> None:
        """Raise unless the model holds its training weights, and nobody goes over branches that would end with them.

        Raises:
            ValueError: It does not.
        """
        self._forbid_inside(what)
        live = self._live(self._slots)
        showing.refuse(what, live)
        holders.refuse_turns(what, live)

    @contextmanager
    def averaged(self, which: int = 0) -> Iterator[nn.Module]:
        """The model with the average in it, until the block ends or raises; then the training weights and buffers are
        back, bit for bit.

        What the block re-estimates, the buffers it writes (norm statistics by
        :func:`~lookaround.averaging.update_norm_stats`), belongs to this average from then on, wherever it is shown,
        copied, exported or saved, until the next point outdates it; unless the block raises. What it does to weights
        ends with it.

        Blocks may be nested, those of other averages and of a Lookahead or Lookaround too (this one inside theirs, not theirs inside
        this one), and left in any order. Inside, points can be neither added nor loaded, and a Lookahead or Lookaround that holds the
        model's parameters neither steps nor changes its mode. ``state_dict()`` taken inside holds the training weights too, so that a
        checkpoint of the model and of this average written there resumes the training: load the model first, then averages and
        optimizers in any order. Needs memory for one more copy of the model; in host memory with ``offload``. A copy
        (``copy.deepcopy``, pickle) made inside, of this object or of a model that holds it, is outside the block and its model holds
        the training weights.

        Raises:
            ValueError: There is no point in the average yet, or the model is no longer made as it was at construction.
        """
        self._check_model()
        self._keep_reestimated()
        again, live = partial(self._values, which), self._live(self._slots)
        now = partial(self._live, self._slots)
        block = Block(self, which, live, again(), now, again, self._keep_reestimated, offload=self._offload)
        showing.show(block)
        self._entered.append(block)
        try:
            with holders.barred(live, block.title):
                tensors.copy_(live, block.values)
                yield self._model
                self._keep_reestimated()
        finally:
            showing.leave(block)

    def copy_to(self, model: nn.Module, which: int = 0) -> None:
        """Write the average, and what it leaves to the model, into ``model``, in its dtypes and on its device: this model,
        or another one with the same own names, sharded or not. Between a sharded and a whole model every process calls this.

        Raises:
            ValueError: A name or shape differs, or there is no point in the average yet, or it is this model while that holds something
                to look at, with which the copy would be lost. Nothing is written then.
        """
        if model is self._model:
            self._forbid_inside("copy_to() of the same model")
            showing.refuse("copy_to() of the same model", self._live(self._slots))
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
        return {**self.__dict__, "_entered": [], "training": self._training()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        training = state.pop("training")
        self.__dict__.update(state)
        if training:
            tensors.copy_([s.tensor for s in self._slots], training)

    def _training(self) -> list[Tensor]:
        """Inside :meth:`averaged`: what the model will hold again, whoever has put it aside; else nothing."""
        return showing.training(self._blocks[0].tensors) if self._blocks else []

    def _shared_state(self, averages: int) -> dict[str, Any]:
        """What every average saves beside its means: what was copied and re-estimated, and what :meth:`averaged` put aside."""
        self._keep_reestimated()
        return {
            "copied": self._named(self._copied_slots, self._copied) if self._copied else {},
            "reestimated": [dict(self._reestimated.get(which, {})) for which in range(averages)],
            **({"training": self._named(self._slots, self._training())} if self._blocks else {}),
        }

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
            showing.refuse("load_state_dict() of a state saved inside averaged()", self._live(self._slots))
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
