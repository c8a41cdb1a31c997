"""An experiment's folder read by whoever did not write it: nothing is locked, nothing is changed, everything is checked."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lookaround.errors import UsageError
from lookaround.tasks.base import Metric

EXPERIMENT = "experiment.json"
RESULT = "result.json"
METRICS = "metrics.jsonl"
Read = TypeVar("Read")


@dataclass(frozen=True)
class Record:
    """One evaluation of a run.

    Attributes:
        spent: of the budget until then, in the task's unit.
        seconds: of training and evaluation until then.
        metrics: of the averaged weights.
        plain: of the weights as training left them; None where they were not evaluated.
    """

    spent: int
    seconds: float
    metrics: Mapping[str, float]
    plain: Mapping[str, float] | None


@dataclass(frozen=True)
class EndedRun:
    """One run that has ended, well or not.

    Attributes:
        folder: it lies in.
        label: of its method.
        settings: of its method, all of them.
        seed: of the run.
        unit: of the budget.
        budget: granted.
        gradient_evaluations: minibatch gradients computed.
        forward_passes: for one prediction.
        seconds: of training and evaluation.
        metrics: final ones, without those that have no value on this data; None for a run that diverged.
        split: on which they were measured.
        diverged: what was not finite and when, or None.
        records: its evaluations, in order.
    """

    folder: Path
    label: str
    settings: Mapping[str, Any]
    seed: int
    unit: str
    budget: int
    gradient_evaluations: int
    forward_passes: int
    seconds: float
    metrics: Mapping[str, float] | None
    split: str
    diverged: str | None
    records: tuple[Record, ...]


@dataclass(frozen=True)
class Experiment:
    """What a folder holds.

    Attributes:
        path: of the folder.
        identity: all that decides what the numbers mean; experiments of equal identities are comparable.
        metrics: of the task, the leading one first.
        runs: that have ended, in the order of their methods in the folder's plan, as far as it names them, then by seed.
        unfinished: folders of the runs that have not.
    """

    path: Path
    identity: Mapping[str, Any]
    metrics: tuple[Metric, ...]
    runs: tuple[EndedRun, ...]
    unfinished: tuple[Path, ...]


def experiments_below(path: Path) -> str:
    """The end of a message about a folder without an experiment: which of its folders hold one, as lookaround tune leaves them."""
    found = [str(file.parent) for file in sorted(path.glob(f"*/{EXPERIMENT}"))]
    return f"; there is one in {', '.join(found)}" if found else ""


def read_folder(path: Path) -> Experiment:
    """The experiment in the folder ``path``, finished or not.

    Raises:
        UsageError: naming the folder that holds none, or the file that is damaged.
    """
    file = path / EXPERIMENT
    if not path.is_dir():
        raise UsageError(f"there is no folder {path}; give the --out of lookaround train")
    if not file.is_file():
        raise UsageError(
            f"{path} holds no experiment of lookaround train: there is no {EXPERIMENT} in it{experiments_below(path)}"
        )
    saved = _json(file)
    identity, metrics = _checked(file, lambda: (_mapping(saved["identity"]), tuple(map(_metric, saved["metrics"]))))
    if not metrics:
        raise _damaged(file, "it names no metrics")
    found = sorted(path.glob("*/seed-*/"))
    ended = [_run(folder, metrics) for folder in found if (folder / RESULT).is_file()]
    left = tuple(folder for folder in found if not (folder / RESULT).is_file())
    order = _planned(saved)
    runs = sorted(ended, key=lambda run: (order.get(run.label, len(order)), run.folder.parent.name, run.seed))
    return Experiment(path, identity, metrics, tuple(runs), left)


def _planned(saved: Mapping[str, Any]) -> dict[str, int]:
    """The places of the methods in the experiment's options; none where it does not list them as text."""
    plan = saved.get("options")
    methods = plan.get("methods") if isinstance(plan, dict) else None
    listed = [method for method in methods if isinstance(method, str)] if isinstance(methods, list) else []
    return {method: place for place, method in enumerate(listed)}


def _run(folder: Path, metrics: tuple[Metric, ...]) -> EndedRun:
    file = folder / RESULT
    saved = _json(file)
    records = tuple(_records(folder / METRICS))
    run = _checked(file, lambda: _ended(folder, saved, records))
    missing = [metric.name for metric in metrics if run.metrics is not None and metric.name not in saved["metrics"]]
    if missing:
        raise _damaged(file, f"it has no {missing[0]}")
    return run


def _ended(folder: Path, saved: Mapping[str, Any], records: tuple[Record, ...]) -> EndedRun:
    return EndedRun(
        folder,
        _text(saved["method"]),
        _mapping(saved["settings"]),
        _integer(saved["seed"]),
        _text(saved["unit"]),
        _integer(saved["budget"]),
        _integer(saved["gradient_evaluations"]),
        _integer(saved["forward_passes"]),
        _number(saved["seconds"]),
        None if saved["metrics"] is None else _numbers(saved["metrics"]),
        _text(saved["split"]),
        None if saved["diverged"] is None else _text(saved["diverged"]),
        records,
    )


def _records(file: Path) -> list[Record]:
    """All but a last line that a killed process left incomplete."""
    if not file.is_file():
        return []
    lines = _bytes(file).split(b"\n")[:-1]
    return [_record(file, number, line) for number, line in enumerate(lines, start=1)]


def _record(file: Path, number: int, line: bytes) -> Record:
    def read() -> Record:
        saved = _mapping(json.loads(line))
        plain = saved.get("plain")
        return Record(
            _integer(saved["spent"]),
            _number(saved["seconds"]),
            _numbers(saved["metrics"]),
            None if plain is None else _numbers(plain),
        )

    return _checked(file, read, f"line {number}: ")


def _json(file: Path) -> dict[str, Any]:
    return _checked(file, lambda: _mapping(json.loads(_bytes(file))))


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from error


def _checked(file: Path, read: Callable[[], Read], where: str = "") -> Read:
    try:
        return read()
    except KeyError as error:
        raise _damaged(file, f"{where}it has no {error.args[0]}") from error
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        if isinstance(error, UsageError):
            raise
        raise _damaged(file, f"{where}{error}") from error


def _damaged(file: Path, reason: str) -> UsageError:
    return UsageError(f"{file} is damaged or was not written by this lookaround: {reason}")


def _metric(saved: Any) -> Metric:
    return Metric(**_mapping(saved))


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"an object is expected, not {_shown(value)}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"text is expected, not {_shown(value)}")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TypeError(f"a finite number is expected, not {_shown(value)}")
    return value


def _integer(value: Any) -> int:
    if _number(value) != int(value):
        raise TypeError(f"a whole number is expected, not {_shown(value)}")
    return int(value)


def _numbers(value: Any) -> dict[str, float]:
    return {name: _number(number) for name, number in _mapping(value).items() if number is not None}


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
