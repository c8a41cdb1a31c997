"""A whole experiment: every method with every seed, then the table and the curves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from lookaround.errors import DivergedError, UsageError
from lookaround.experiment.display import Display, Lines, Silent
from lookaround.experiment.folder import ExperimentFolder
from lookaround.experiment.interrupts import StopRequest, stop_requests
from lookaround.experiment.lock import locked
from lookaround.experiment.plan import Plan
from lookaround.experiment.report import Comparison, report
from lookaround.experiment.running import Prepared, check_methods, prepare, sharing
from lookaround.experiment.team import Team, restarted
from lookaround.experiment.training import Training
from lookaround.experiment.warmup import never_down
from lookaround.methods import Spec


def train(
    plan: Plan,
    out: Path,
    display: Display | None = None,
    *,
    resume: bool = False,
    add_methods: Sequence[Spec] = (),
    add_seeds: Sequence[int] = (),
    team: Team | None = None,
) -> Comparison:
    """Trains every method of ``plan`` with every seed and compares them.

    ``out`` gets ``experiment.json``, ``results.json``, ``table.md``, ``curves.png`` and, for each run, a folder ``METHOD/seed-SEED``
    with ``metrics.jsonl``, TensorBoard events, ``checkpoint.pt``, ``model.safetensors`` and ``result.json``; an ensemble's networks
    are ``member-1.safetensors`` and so on beside it. Each file is written whole or not at all, and finished runs are never
    trained again. Every method is built before anything is written, so that a setting that it refuses is noticed at once. A run whose
    loss is no longer finite ends there; the others go on, and the table says which have diverged.

    Args:
        plan: what to compute.
        out: the experiment's folder. One process at a time works in it.
        display: follows the experiment; None prints a line an evaluation.
        resume: go on with the unfinished experiment in ``out``, bit for bit; one that was not begun starts.
        add_methods: extend the experiment in ``out``, whose plan ``plan`` is, by these methods; with ``resume``, by those it lacks.
        add_seeds: extend it by these seeds.
        team: the processes that make this call together; None for this one alone. The first one shows and writes.

    Raises:
        UsageError: for anything that cannot be used: data, names, settings, folder, checkpoint.
        InterruptedRunError: after SIGINT or SIGTERM, with a checkpoint saved.
        DivergedError: when every run has diverged; the table is written all the same.
        OSError: when a file cannot be written.

    Example:
        >>> import tempfile
        >>> from dataclasses import replace
        >>> from pathlib import Path
        >>> from lookaround.experiment import Plan, train
        >>> from lookaround.methods import Spec
        >>> from lookaround.tasks.vision import VisionConfig, load_network
        >>> methods = Spec.parse("sgd:warmup=0.5"), Spec.parse("lookaround:k=2,warmup=0.5")
        >>> plan = Plan("vision", VisionConfig(train_images=100, width=4), methods)
        >>> with tempfile.TemporaryDirectory() as out:
        ...     comparison = train(replace(plan, budget=replace(plan.budget, epochs=1)), Path(out))
        ...     model, architecture = load_network(comparison.networks[1])
        sgd:warmup=0.5, seed 0 | epoch 1 | ...
        lookaround:k=2,warmup=0.5, seed 0 | epoch 1 | ...
        >>> [result.spent for result in comparison.results]
        [192, 192]
    """
    team = team or Team()
    display = (display or Lines(print)) if team.first else Silent()
    folder = ExperimentFolder(out, plan)
    resume = resume or restarted()
    team.from_first(lambda: _check_may_begin(folder, resume, bool(add_methods or add_seeds)))
    wanted = _extended(plan, add_methods, add_seeds, resume)
    prepared = prepare(wanted, team)
    check_methods(prepared)
    with _taken(out, team), cpu_threads(plan.machine.threads), stop_requests() as stop:
        unfinished = team.from_first(lambda: _opened(folder, prepared, display))
        runs = list(wanted.runs())
        _train_all(folder, [runs[number] for number in unfinished], prepared, display, stop)
        return team.from_first(lambda: report(folder, prepared))


@contextmanager
def _taken(out: Path, team: Team) -> Iterator[None]:
    """The folder is this experiment's alone, inside."""
    lock = ExitStack()
    try:
        team.from_first(lambda: _lock(lock, out))
        yield
    finally:
        lock.close()


def _lock(lock: ExitStack, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    lock.enter_context(locked(out))


def _opened(folder: ExperimentFolder, prepared: Prepared, display: Display) -> list[int]:
    """Writes what the folder holds, and gives the numbers of the runs that are not finished."""
    folder.check()  # another process may have extended it since
    changed = folder.create(prepared)
    if prepared.plan != folder.plan:
        folder.extend(prepared.plan)
    notes = [
        *prepared.task.notes,
        sharing(prepared),
        never_down(prepared),
        f"{folder.path}: {changed}" if changed else "",
    ]
    for note in filter(None, notes):
        display.note(note)
    return [number for number, end in enumerate(folder.ends().values()) if end is None]


def _extended(plan: Plan, methods: Sequence[Spec], seeds: Sequence[int], resume: bool) -> Plan:
    """The plan with more methods and seeds; a resumed extension may have been written down before it was interrupted."""
    known = {spec.label for spec in plan.methods} if resume else set()
    try:
        return plan.extended(
            tuple(spec for spec in methods if spec.label not in known),
            tuple(seed for seed in seeds if not (resume and seed in plan.seeds)),
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def _check_may_begin(folder: ExperimentFolder, resume: bool, extend: bool) -> None:
    if extend and not folder.exists:
        raise UsageError(f"{folder.path} holds no experiment to extend; name methods with --methods to begin one")
    if folder.exists and not (resume or extend) and None in folder.ends().values():
        raise UsageError(
            f"{folder.path} holds this experiment, unfinished: add --resume to go on, or choose another --out"
        )


@contextmanager
def cpu_threads(number: int | None) -> Iterator[None]:
    """Inside, torch uses this many threads for an operation; None leaves it as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if number is None else number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _train_all(
    folder: ExperimentFolder,
    open_runs: Sequence[tuple[Spec, int]],
    prepared: Prepared,
    display: Display,
    stop: StopRequest,
) -> None:
    if not open_runs:
        display.note(f"every run in {folder.path} is finished; nothing to train")
    with display:
        display.begin(len(open_runs))
        for spec, seed in open_runs:
            path = folder.run(spec, seed)
            path.mkdir(parents=True, exist_ok=True)
            training = Training(prepared, spec, seed, path, display)
            display.run(f"{spec.label}, seed {seed}", training.step, training.total)
            try:
                training.train(stop)
            except DivergedError as error:
                display.note(str(training.give_up(str(error)).diverged))
