"""A task, a method and a budget put together: what a run starts from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lookaround.errors import UsageError
from lookaround.experiment.plan import Plan
from lookaround.experiment.team import Team
from lookaround.methods import Method, Resolved, Schedule, Setup, Spec, build, make_optimizer, spreads
from lookaround.tasks.base import Batch, Predict, Task
from lookaround.tasks.registry import task_entry
from lookaround.tasks.streams import stream_seed


@dataclass(frozen=True)
class Prepared:
    """A plan with its task's data loaded.

    Attributes:
        plan: of the experiment.
        task: on its device, with what is held out set aside.
        budget: samples (tokens) of every run.
        epochs: of the budget.
        team: the processes that run it.
    """

    plan: Plan
    task: Task
    budget: int
    epochs: float
    team: Team = field(default_factory=Team)

    def precision(self) -> AbstractContextManager[Any]:
        """The precision of forward passes."""
        return torch.autocast(self.task.device.type, torch.bfloat16, enabled=self.plan.machine.amp)

    def scores(self, predict: Predict, split: Any) -> dict[str, float]:
        """The task's metrics."""
        with self.precision():
            return self.task.evaluate(predict, split)


def prepare(plan: Plan, team: Team | None = None) -> Prepared:
    """Loads the task's data and sets aside what is held out, before anything is written.

    Raises:
        UsageError: for anything that cannot be used.
    """
    try:
        task = task_entry(plan.task).load(plan.config, device_named(plan.machine.device))
        if plan.held_out is not None:
            task = task.holding_out(plan.held_out)
        epoch = _epoch(task)
    except ValueError as error:
        raise UsageError(str(error)) from error
    budget = plan.budget.budget or plan.budget.epochs * epoch
    return Prepared(plan, task, budget, budget / epoch, team or Team())


def _epoch(task: Task) -> int:
    """Samples (tokens) of an epoch's copies, in minibatches of the size that suits the task, or where the data do not fill one of
    those, of half of that, and so on.

    Raises:
        ValueError: for data that cannot serve the task whatever the size, as for the size that suits it.
    """
    first: ValueError | None = None
    batch = task.defaults.batch
    while batch:
        try:
            usual = task.batches(0, batch, task.branches)
            return usual.per_epoch * usual.units * task.branches
        except ValueError as error:
            first, batch = first or error, batch // 2
    assert first is not None
    raise first


def device_named(name: str) -> torch.device:
    """The device; ``auto`` is CUDA where there is one, else the CPU.

    Raises:
        UsageError: for a device that is not there, or neither a CPU nor a CUDA one.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise UsageError(f"unknown device {name!r}; choose auto, cpu, cuda or cuda:N")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error


def new_network(prepared: Prepared, seed: int) -> nn.Module:
    """A network with the seed's initial weights, compiled if the plan says so."""
    torch.manual_seed(stream_seed(seed, "weights"))
    model = prepared.task.network()
    if prepared.plan.machine.compile:
        model.compile()
    return model


def new_setup(prepared: Prepared, resolved: Resolved, seed: int, model: nn.Module) -> Setup:
    """What the method is given for a run with this seed.

    Raises:
        ValueError: for a batch or a number of branches that the data cannot serve, a schedule that does not fit, or a budget of less
            than one minibatch.
    """
    task = prepared.task
    batches = task.batches(seed, resolved.batch, resolved.branches)
    cost = batches.branches * batches.units * resolved.gradients
    total = prepared.budget // cost
    if total < 1:
        raise ValueError(f"a minibatch costs {cost:,} {task.unit}, more than the whole budget of {prepared.budget:,}")
    epoch = total / prepared.epochs
    return Setup(
        model,
        partial(_loss, prepared),
        partial(make_optimizer, resolved.inner, resolved.optimizer, task),
        batches,
        _schedule(resolved, total, epoch),
        total,
        max(1, round(epoch)),
        getattr(resolved.settings, "norm_stats", "average"),
        task.metrics,
        _held_out(prepared),
        prepared.precision,
        task.clip,
        prepared.team.mesh if spreads(resolved.name, resolved.settings) else None,
    )


def _loss(prepared: Prepared, model: nn.Module, batch: Batch) -> Tensor:
    with prepared.precision():
        return prepared.task.loss(model, batch)


def _held_out(prepared: Prepared) -> Callable[[Predict], Mapping[str, float]] | None:
    return None if prepared.plan.held_out is None else partial(prepared.scores, split="held-out")


def _schedule(resolved: Resolved, total: int, epoch: float) -> Schedule:
    chosen = resolved.settings
    warmup = round(chosen.warmup * epoch)
    return Schedule(chosen.schedule, total, warmup, chosen.milestones, chosen.gamma, chosen.cooldown)


def new_method(prepared: Prepared, spec: Spec, seed: int, model: nn.Module) -> tuple[Method, Resolved]:
    """The method over the model, and its settings.

    Raises:
        UsageError: for settings that the method, the network or the budget do not allow, naming the method.
    """
    try:
        resolved = spec.resolve(prepared.task.defaults, prepared.task.branches)
        return build(spec.name, new_setup(prepared, resolved, seed, model), resolved.settings), resolved
    except ValueError as error:
        raise UsageError(_named(spec, str(error))) from error


def sharing(prepared: Prepared) -> str:
    """What several processes do with the methods of the plan, in words; nothing for one process."""
    if prepared.team.size == 1:
        return ""
    task = prepared.task
    kinds: dict[bool, list[str]] = {True: [], False: []}
    for spec in prepared.plan.methods:
        resolved = spec.resolve(task.defaults, task.branches)
        kinds[spreads(resolved.name, resolved.settings)].append(spec.label)
    said = [f"{prepared.team.size} processes"]
    if kinds[True]:
        said.append(f"the branches of {', '.join(kinds[True])} are shared out")
    if kinds[False]:
        said.append(f"{', '.join(kinds[False])}: computed by each process alike")
    return "; ".join(said)


def _named(spec: Spec, said: str) -> str:
    return said if said.startswith(f"{spec.name}: ") else f"{spec.label}: {said}"


def check_methods(prepared: Prepared) -> None:
    """Builds every method once, so that a setting that cannot be used is noticed before the first step of the first run.

    Raises:
        UsageError: for the first method whose settings are refused, or two that are the same.
    """
    task = prepared.task
    seen: dict[str, str] = {}
    for spec in prepared.plan.methods:
        _, resolved = new_method(prepared, spec, 0, new_network(prepared, 0))
        same = repr((resolved.name, sorted(resolved.as_json().items())))
        if same in seen:
            raise UsageError(f"{seen[same]} and {spec.label} are the same on {task.name}; leave one out")
        seen[same] = spec.label
