"""Running averages of a model's weights: uniform, exponential, tail, and several of them from one pass."""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lookaround import tensors
from lookaround.averaging.model_average import ModelAverage, Point
from lookaround.averaging.posthoc import Profile, snapshot_metadata, snapshot_path
from lookaround.averaging.power_rule import Power
from lookaround.averaging.rules import Rule, Tail
from lookaround.averaging.sharding import whole
from lookaround.averaging.slots import own_names, require_equal, shapes
from lookaround.averaging.states import require_count, require_keys, require_list, require_tensors
from lookaround.buffers import Policy


class _Track:
    """One rule with its running means: the average first, then the younger mean that will take its place."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.lengths = [0] * rule.sums
        self.means: list[list[Tensor]] = []

    def weights(self, n: int) -> list[float]:
        """The weight of the n-th point in each mean, and the lengths that follow from it."""
        weights = self.rule.weights(n, self.lengths)
        self.lengths = [1 if w == 1 else length + (w > 0) for w, length in zip(weights, self.lengths, strict=True)]
        return weights

    def hand_over(self, n: int) -> None:
        if len(self.lengths) > 1 and self.rule.hands_over(n, self.lengths[1]):
            self.means.reverse()
            self.lengths = [self.lengths[1], 0]

    def average(self) -> list[Tensor]:
        """The average: one of the means, or what the rule makes of several."""
        parts = [(s, mean) for s, mean in zip(self.rule.shares(self.lengths), self.means, strict=True) if s]
        if len(parts) == 1:
            return parts[0][1]
        total, result = parts[0][0], tensors.clone(parts[0][1])
        for share, mean in parts[1:]:
            total += share
            tensors.lerp_each_([result], mean, [share / total])
        return result


class RunningAverage(ModelAverage):
    """Running averages of a model's weights over the points at which :meth:`update` is called.

    The first :meth:`update` is the first point: the initial weights are a point only if it is called before the first
    step. The n-th point is weighted by the rule, which says exactly what the average is after every n. Parameters of 8
    and 16 bits are averaged in float32, others in their own precision. Tied weights are averaged once, DTensors shard
    by shard. Nothing waits for the device.

    Only what can be trained is averaged: parameters that require no gradient when the average is built are neither stored
    nor touched, and wherever the average is shown, copied or exported they are the model's own. So the average of a model
    with adapters (LoRA) costs the adapters. ``average_frozen`` averages all parameters.

    Buffers follow what they are: floating-point running statistics (``running_*``) are averaged like weights;
    everything else (integer counters, spectral norm's vectors, masks, tables) is copied at each point; buffers that the
    model does not save are left alone. To have the statistics re-estimated instead, call
    :func:`~lookaround.averaging.update_norm_stats` inside :meth:`averaged`, where they become this average's until its next
    point, or on the model that :meth:`copy_to` has written.

    Beside a :class:`~lookaround.Lookaround` or :class:`~lookaround.Lookahead` the model holds, in the middle of a round, a branch:
    then the average is sampled, as its ``averaged()`` shows it. That costs what evaluating the average costs; right after an average
    step it costs nothing, so update once a round. ``point=contextlib.nullcontext`` samples what is in the model. A wrapper that
    no longer trains, and was left in the middle of a round, counts as long as it is there: end its round with ``average()``.

    Args:
        model: The model, wrapped (DDP, ``torch.compile``), sharded by ``fully_shard`` (FSDP2), or not. It is not copied.
            ``FullyShardedDataParallel`` (FSDP1) is fine with original parameters and where it does not shard: in a single
            process or with ``NO_SHARD``.
        rule: :func:`uniform`, :func:`exponential`, :func:`tail`, :func:`lawa`, :func:`power` or :func:`emulated_decay`, or
            several of them: all averages are then updated in one pass over the weights, and ``which`` chooses among them
            everywhere.
        point: Makes a context in which the model holds the point to sample. By default that is the average of the Lookahead or
            Lookaround that holds the model's parameters, and else the model as it is. Where its branches are spread over processes,
            it has to be given: ``optimizer.averaged``, which every process calls.
        buffers: Other policies for buffers: shell patterns of own names with ``"average"`` or ``"copy"``.
        average_frozen: Average parameters that require no gradient, too.
        offload: Keep the averages in host memory, pinned where there is CUDA.

    Raises:
        ValueError: No rule is given, or one that lacks its total; a pattern of ``buffers`` does not fit the model; no parameter
            can be trained; a tensor is sparse, quantized or a conjugated view; or FSDP1 has sharded the model.
        TypeError: ``point`` is a context manager instead of what makes one.

    >>> from torch import nn
    >>> from lookaround.averaging import RunningAverage, uniform, exponential
    >>> model = nn.Linear(1, 1, bias=False)
    >>> average = RunningAverage(model, [uniform(), exponential(0.5)])
    >>> for value in (1.0, 2.0, 6.0):
    ...     _ = nn.init.constant_(model.weight, value)
    ...     average.update()
    >>> with average.averaged():
    ...     model.weight.item()
    3.0
    >>> with average.averaged(1):
    ...     model.weight.item()
    3.75
    >>> model.weight.item()
    6.0
    """

    def __init__(
        self,
        model: nn.Module,
        rule: Rule | Sequence[Rule],
        *,
        point: Point | None = None,
        buffers: Mapping[str, Policy] | None = None,
        average_frozen: bool = False,
        offload: bool = False,
    ) -> None:
        rules = list(rule) if isinstance(rule, Sequence) else [rule]
        if not rules or not all(isinstance(r, Rule) for r in rules):
            raise ValueError(f"rule must be uniform(), exponential(...), tail(...) or a list of them, got {rule!r}")
        for r in rules:
            if r.needs_total:
                raise ValueError(
                    f"{r!r} weighs points by how many there will be: give it total=, the number of updates"
                )
        super().__init__(model, buffers, offload, average_frozen, point)
        self._tracks = [_Track(r) for r in rules]
        self._count = 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(repr(t.rule) for t in self._tracks)}, count={self._count})"

    @property
    def count(self) -> int:
        """The number of points so far."""
        return self._count

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules, in the order ``which`` numbers them."""
        return tuple(t.rule for t in self._tracks)

    def update(self) -> None:
        """Add the model's weights as they are now as the next point. Reads each weight once, whatever the number of
        averages.

        Raises:
            ValueError: Called inside :meth:`averaged`, of this average or of another one; or the model is no longer made as it was at
                construction (a tensor is new, gone, of another shape, no longer tied or can be trained now); or ``point`` has to be
                given. Nothing is changed then.
        """
        self._add(afresh=False)

    @torch.no_grad()
    def _add(self, *, afresh: bool) -> None:
        """Add a point, as the first one if ``afresh``."""
        self._forbid_inside("update()")
        self._check_model()
        with self._at_point() as sources:
            if afresh:
                self.reset()
            for track in self._tracks:
                if not track.means:
                    track.means = [self._store(sources) for _ in track.lengths]
            self._count += 1
            self._pull(sources)
            self._keep_copied()
        for track in self._tracks:
            track.hand_over(self._count)

    def _pull(self, sources: list[Tensor]) -> None:
        pulled = [
            (mean, weight)
            for track in self._tracks
            for mean, weight in zip(track.means, track.weights(self._count), strict=True)
            if weight
        ]
        if pulled:
            tensors.lerp_each_([mean for mean, _ in pulled], sources, [weight for _, weight in pulled])

    def reset(self) -> None:
        """Forget all points; the next :meth:`update` is the first again. The memory is kept.

        Raises:
            ValueError: Called inside :meth:`averaged`.
        """
        self._forbid_inside("reset()")
        self._count = 0
        self._reestimated.clear()
        for track in self._tracks:
            track.lengths = [0] * len(track.lengths)

    def _track(self, which: int) -> _Track:
        if not 0 <= which < len(self._tracks):
            raise ValueError(f"there are {len(self._tracks)} averages, numbered from 0; got which={which}")
        return self._tracks[which]

    def _mean(self, which: int) -> list[Tensor]:
        track = self._track(which)
        if self._count == 0:
            raise ValueError("the average holds no point yet; call update() first")
        return track.average()

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on bit for bit: numbers, strings and tensors (not copies) in plain containers.

        Inside :meth:`averaged` it holds the training weights too.
        """
        self._synchronize()
        tracks = [
            {
                "rule": repr(track.rule),
                "lengths": list(track.lengths),
                "means": [self._named(self._averaged_slots, mean) for mean in track.means] if self._count else [],
            }
            for track in self._tracks
        ]
        shared = self._shared_state(len(self._tracks))
        return {"count": self._count, "averages": tracks, **shared, **({} if self._count else {"copied": {}})}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load :meth:`state_dict`'s result, from any device and in any precision, into this average's.

        A state taken inside :meth:`averaged` also writes its training weights into the model. The state of a whole model
        loads into the average of a sharded one, with the same values on every process, and the other way round; every
        process calls this then.

        Raises:
            ValueError: Names, shapes or rules differ, or it is called inside :meth:`averaged`. Nothing is changed then.
        """
        self._check(state)
        means = [[self._load_list(self._averaged_slots, m) for m in track["means"]] for track in state["averages"]]
        self._load_shared(state)
        self._count = int(state["count"])
        for track, saved, loaded in zip(self._tracks, state["averages"], means, strict=True):
            track.lengths = [int(n) for n in saved["lengths"]]
            track.means = loaded

    def _check(self, state: Mapping[str, Any]) -> None:
        require_keys(state, ("count", "averages", "copied", "reestimated"), "a RunningAverage")
        count = require_count(state["count"], "count")
        averages = require_list(state["averages"], "averages")
        for values in averages:
            require_keys(values, ("rule", "lengths", "means"), "a RunningAverage's average")
        saved = {f"average {i}": str(values["rule"]) for i, values in enumerate(averages)}
        require_equal(
            {f"average {i}": repr(t.rule) for i, t in enumerate(self._tracks)}, saved, "the state's set of rules"
        )
        self._check_shared(state, count, len(self._tracks))
        for track, values in zip(self._tracks, averages, strict=True):
            self._check_track(track.rule, values, count)

    def _check_track(self, rule: Rule, values: Mapping[str, Any], count: int) -> None:
        means, lengths = require_list(values["means"], "means"), require_list(values["lengths"], "lengths")
        if len(means) != (rule.sums if count else 0) or len(lengths) != rule.sums:
            raise ValueError(f"the state of {rule!r} must hold {rule.sums} running means")
        if any(require_count(length, "length") > count for length in lengths) or (count and not any(lengths)):
            raise ValueError(f"the state is damaged: means of {lengths} points cannot be of {count}")
        for mean in means:
            self._check_named(self._averaged_slots, mean, "the state's average")

    def store(self, folder: str | PathLike[str]) -> list[Path]:
        """Write the power-function averages as they are now into ``folder``, one file each, for
        :func:`~lookaround.averaging.synthesize` to make averages of other widths from after the training.

        A file is whole or not there; after a resumed run has come to the same point again it is the same one. Weights are
        written in the precision they are averaged in, frozen parameters not at all. Every process calls this where
        DTensors are averaged, and rank 0 writes.

        Returns:
            The files.

        Raises:
            ValueError: No average is of the :func:`power` rule, or there is no point yet.
            OSError: A file cannot be written.
        """
        self._check_model()
        files = []
        for which, track in enumerate(self._tracks):
            if isinstance(track.rule, Power):
                profile = Profile(track.rule.gamma, self._count)
                files.append(snapshot_path(folder, profile))
                values = [whole(value) for value in self._values(which)]
                self._write(files[-1], self._slots, values, snapshot_metadata(profile))
        if not files:
            raise ValueError(
                f"only averages of the power() rule can be synthesized from afterwards, and {self!r} has none"
            )
        return files

    def averaged_model_state(self, which: int = 0) -> dict[str, Tensor]:
        """The average as the ``state_dict`` of ``torch.optim.swa_utils.AveragedModel(model)``, ready for its
        ``load_state_dict``.

        Averages of uniform and plain exponential rules go on there as they would here; low-precision weights are
        rounded to the model's dtype, which is what ``AveragedModel`` keeps. The names are those of ``model`` with its wrappers;
        for an ``AveragedModel`` of the bare model, load :meth:`state_dict` into an average of the bare model first.

        Raises:
            ValueError: There is no point in the average yet.
        """
        state = {"n_averaged": torch.tensor(self._count)}
        for slot, value in zip(*self._whole_model(which), strict=True):
            state |= {f"module.{name}": value.detach().to(slot.tensor.dtype) for name in slot.wrapped}
        return state

    def load_averaged_model_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over the ``state_dict`` of an ``AveragedModel`` of this model, wrapped alike or not, and go on from there.

        Raises:
            ValueError: Names or shapes differ, or this object has several averages or a ``tail`` rule, which one mean
                cannot fill. Nothing is changed then.
        """
        self._forbid_inside("load_averaged_model_state()")
        if len(self._tracks) != 1 or self._tracks[0].rule.sums != 1 or isinstance(self._tracks[0].rule, Tail):
            raise ValueError(
                f"an AveragedModel's one mean cannot fill {self!r}; use a single uniform() or exponential() rule"
            )
        require_keys(state, ("n_averaged",), "an AveragedModel")
        count = require_count(state["n_averaged"], "n_averaged")
        self._check_model()
        given = {name.removeprefix("module."): t for name, t in state.items() if name != "n_averaged"}
        require_tensors(given, "the AveragedModel's state")
        slots = self._slots + self._left_slots
        by_name = {own: given[name] for name, own in own_names(slots, given).items()}
        expected = {name: s.tensor for s in slots for name in s.aliases}
        require_equal(shapes(expected), shapes(by_name), "the AveragedModel's state")
        self._reestimated.clear()
        self._copied = self._load_list(self._copied_slots, by_name)
        self._tracks[0].means = [self._load_list(self._averaged_slots, by_name)]
        self._tracks[0].lengths, self._count = [count], count
