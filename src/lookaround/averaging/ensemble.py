"""Averages of predictions: ensembles of several models, and of the snapshots of one run with cosine warm restarts."""

import copy
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

from lookaround import tensors
from lookaround.averaging.model_average import Point, at_point, require_point
from lookaround.averaging.slots import find_slots, require_equal, shapes, unwrap
from lookaround.averaging.states import require_count, require_keys, require_list, require_number, require_tensors


def _tensors(members: Iterable[nn.Module]) -> Iterator[Tensor]:
    return itertools.chain.from_iterable(itertools.chain(m.parameters(), m.buffers()) for m in members)


def _version(tensor: Tensor) -> int:
    """How often the tensor was written to in place; inference tensors do not count that."""
    return -1 if tensor.is_inference() else tensor._version


class _Batched:
    """Members of equal architecture as one function of stacked weights, as they are now."""

    def __init__(self, members: list[nn.Module]) -> None:
        first = shapes(members[0].state_dict())
        for i, member in enumerate(members[1:], start=1):
            require_equal(first, shapes(member.state_dict()), f"member {i} of the batched ensemble")
        self.parameters, self.buffers = stack_module_state(members)
        self.skeleton = copy.deepcopy(members[0]).to("meta")
        # Aliases keep the memory, so that no later tensor can come to stand at the same address.
        self._stacked = [(tensor.detach(), _version(tensor)) for tensor in _tensors(members)]

    def holds(self, members: list[nn.Module]) -> bool:
        """Whether the members' tensors are still those that were stacked, and unchanged."""
        now = list(_tensors(members))
        return len(now) == len(self._stacked) and all(
            tensor.data_ptr() == then.data_ptr() and tensor.dtype == then.dtype and _version(tensor) == version
            for tensor, (then, version) in zip(now, self._stacked, strict=True)
        )

    def __call__(self, training: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The outputs of all members, stacked in the first dimension."""
        self.skeleton.train(training)

        def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Any:
            return functional_call(self.skeleton, (parameters, buffers), args, kwargs)

        outputs: Tensor = torch.vmap(one, randomness="different")(self.parameters, self.buffers)
        return outputs


class LogitEnsemble(nn.Module):
    """Several models as one, whose output is the mean of theirs.

    The members run one after another, each in its own mode; ``eval()`` and ``train()`` set all of them. A new ensemble
    of members in evaluation mode is so itself.

    With ``batched``, members of equal architecture run in one pass over stacked weights (:func:`torch.func.vmap`), all
    in the mode of the ensemble. That is for small members on an accelerator, where launching kernels takes the time; on
    a CPU it was measured to be slower, 1.6 times for four ResNet-18 and about twice for small networks. It holds a
    stacked copy of the weights, which is made anew at the next prediction when a member has changed: by loading a state
    dict, ``.to(...)``, a write in place, or being replaced (a write through ``.data`` is not seen). It is for
    prediction: gradients and running statistics stay in the copy. ``torch.compile`` breaks its graph at that check;
    ``torch.export`` takes the copy as it is.

    Args:
        models: The members: modules that take the same inputs and give logits of one shape.
        average: ``"logits"`` for the mean of the logits; ``"probabilities"`` for the logarithm of the mean of the
            softmax probabilities over the last dimension.
        batched: Run all members in one pass.

    Raises:
        ValueError: There are no members, ``average`` is another word, or members to be batched differ in names or
        shapes.

    >>> import torch
    >>> from torch import nn
    >>> from lookaround.averaging import LogitEnsemble
    >>> a, b = nn.Linear(1, 2), nn.Linear(1, 2)
    >>> ensemble = LogitEnsemble([a, b])
    >>> x = torch.ones(3, 1)
    >>> torch.equal(ensemble(x), (a(x) + b(x)) / 2), ensemble.forward_passes
    (True, 2)

    References: Zhang et al. 2023 (Lookaround), sections 4.4 and C.4, Table 9.
    """

    def __init__(
        self,
        models: Iterable[nn.Module],
        *,
        average: Literal["logits", "probabilities"] = "logits",
        batched: bool = False,
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(models)
        if not len(self.members):
            raise ValueError("an ensemble needs at least one model")
        if average not in ("logits", "probabilities"):
            raise ValueError(f"average must be 'logits' or 'probabilities', got {average!r}")
        self.average = average
        if not any(member.training for member in self.members):
            self.eval()
        self._batched = _Batched(list(self.members)) if batched else None

    def _up_to_date(self, batched: _Batched) -> _Batched:
        members = list(self.members)
        if not torch.compiler.is_exporting() and not batched.holds(members):
            self._batched = batched = _Batched(members)
        return batched

    @property
    def forward_passes(self) -> int:
        """The forward passes of a single model that one prediction costs: the inference budget."""
        return len(self.members)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The mean prediction for one input of the members, which all get the same arguments."""
        if self._batched is not None:
            outputs = self._up_to_date(self._batched)(self.training, args, kwargs)
            outputs = outputs if self.average == "logits" else outputs.log_softmax(-1)
        else:
            outputs = torch.stack([self._output(member, args, kwargs) for member in self.members])
        if self.average == "logits":
            return outputs.mean(0)
        return outputs.logsumexp(0) - math.log(len(self.members))

    def _output(self, member: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        output: Tensor = member(*args, **kwargs)
        return output if self.average == "logits" else output.log_softmax(-1)


class SnapshotCollector:
    """Collects the members of a snapshot ensemble: the model's weights at each restart of a cosine schedule.

    Call :meth:`step` after the scheduler's ``step()``, before the next step of the optimizer: when that has just
    restarted, the model is still at the end of the cycle before, its learning rate was lowest, and its weights and
    buffers are kept.

    Args:
        model: The model, wrapped or not.
        scheduler: ``torch.optim.lr_scheduler.CosineAnnealingWarmRestarts``, stepped in whole or fractional epochs.
        keep: Keep only the last ``keep`` snapshots; None keeps all.
        offload: Keep the snapshots in host memory.
        point: Makes a context in which the model holds what to keep, as in
            :class:`~lookaround.averaging.RunningAverage`: by default the average of the Lookahead or Lookaround that holds the model's
            parameters, and else the model as it is.

    Raises:
        ValueError: ``keep`` is below 1.
        TypeError: The scheduler is of another kind.

    >>> import torch
    >>> from torch import nn
    >>> from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts
    >>> from lookaround.averaging import SnapshotCollector
    >>> model = nn.Linear(1, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> scheduler = CosineAnnealingWarmRestarts(optimizer, T_0=2)
    >>> collector = SnapshotCollector(model, scheduler)
    >>> for _ in range(6):
    ...     optimizer.step(); scheduler.step()
    ...     collected = collector.step()
    >>> len(collector), collector.ensemble().forward_passes
    (3, 3)

    References: Huang et al. 2017, "Snapshot Ensembles: Train 1, Get M for Free"; Zhang et al. 2023 (Lookaround),
    section C.4.
    """

    def __init__(
        self,
        model: nn.Module,
        scheduler: CosineAnnealingWarmRestarts,
        *,
        keep: int | None = None,
        offload: bool = False,
        point: Point | None = None,
    ) -> None:
        require_point(point)
        if keep is not None and keep < 1:
            raise ValueError(f"keep must be at least 1 snapshot or None for all, got {keep}")
        if not isinstance(scheduler, CosineAnnealingWarmRestarts):
            raise TypeError(f"scheduler must be a CosineAnnealingWarmRestarts, got {type(scheduler).__name__}")
        self._slots = find_slots(model)
        self._model = model
        self._scheduler = scheduler
        self._keep = keep
        self._offload = offload
        self._point = point
        self._phase, self._epoch = float(scheduler.T_cur), int(scheduler.last_epoch)
        self._snapshots: list[dict[str, Tensor]] = []

    def __len__(self) -> int:
        return len(self._snapshots)

    @property
    def snapshots(self) -> Sequence[dict[str, Tensor]]:
        """The collected weights and buffers under the model's own names, oldest first."""
        return tuple(self._snapshots)

    def step(self) -> bool:
        """Collect a snapshot if the scheduler has restarted since the last call. Returns whether it did."""
        before = self._phase, self._epoch
        self._phase, self._epoch = float(self._scheduler.T_cur), int(self._scheduler.last_epoch)
        # Cycles as long as the steps between two calls end in the same phase; the epoch tells them from no step at all.
        restarted = self._phase < before[0] or (self._phase == before[0] and self._epoch != before[1])
        if restarted:
            self.collect()
        return restarted

    def collect(self) -> None:
        """Keep the model's weights as they are now: for the end of a run whose last cycle no restart follows.

        Raises:
            ValueError: Called inside ``averaged()`` of an average over time, whose weights these would be.
        """
        values = [s.tensor for s in self._slots]
        with at_point(self._point, values):
            kept = [v.detach().to("cpu", copy=True) for v in values] if self._offload else tensors.clone(values)
        self._snapshots.append({s.name: v for s, v in zip(self._slots, kept, strict=True)})
        if self._keep is not None:
            del self._snapshots[: -self._keep]

    def ensemble(self, **options: Any) -> LogitEnsemble:
        """The ensemble of all snapshots, as copies of the model; ``options`` are those of :class:`LogitEnsemble`.

        Raises:
            ValueError: Nothing has been collected.
        """
        return LogitEnsemble([self._member(snapshot) for snapshot in self._snapshots], **options)

    def _member(self, snapshot: Mapping[str, Tensor]) -> nn.Module:
        member = copy.deepcopy(unwrap(self._model))
        slots = find_slots(member)
        tensors.copy_([s.tensor for s in slots], [snapshot[s.name] for s in slots])
        return member.eval()

    def state_dict(self) -> dict[str, Any]:
        """The snapshots and the place in the cycle: numbers and tensors (not copies) in plain containers."""
        return {"phase": self._phase, "epoch": self._epoch, "snapshots": [dict(s) for s in self._snapshots]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load :meth:`state_dict`'s result.

        Raises:
            ValueError: Names or shapes differ from the model's. Nothing is changed then.
        """
        require_keys(state, ("phase", "epoch", "snapshots"), "a SnapshotCollector")
        require_number(state["phase"], "phase")
        epoch, snapshots = require_count(state["epoch"], "epoch"), require_list(state["snapshots"], "snapshots")
        expected = shapes({s.name: s.tensor for s in self._slots})
        for snapshot in snapshots:
            require_equal(expected, shapes(require_tensors(snapshot, "a snapshot")), "the state's snapshot")
        self._snapshots = [{k: v.detach().clone() for k, v in s.items()} for s in snapshots]
        self._phase, self._epoch = float(state["phase"]), epoch
