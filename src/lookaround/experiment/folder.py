"""An experiment's folder: which experiment it holds, and where each run's files are."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lookaround.errors import UsageError
from lookaround.experiment.files import write_json
from lookaround.experiment.lock import LOCK
from lookaround.experiment.plan import Plan, difference
from lookaround.experiment.reading import experiments_below
from lookaround.experiment.results import RESULT, Result
from lookaround.experiment.running import Prepared
from lookaround.files import is_partial
from lookaround.methods import Spec

EXPERIMENT = "experiment.json"


def task_digest(identity: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that are equal where identities are."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def saved_experiment(path: Path) -> dict[str, Any]:
    """What the experiment's file in a folder says.

    Raises:
        UsageError: for a folder without an experiment, or a damaged file.
    """
    file = path / EXPERIMENT
    if not file.is_file():
        raise UsageError(f"{path} holds no experiment: there is no {file}{experiments_below(path)}")
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(saved, dict) and all(isinstance(saved.get(part), dict) for part in ("options", "environment")):
            return saved
    except (OSError, ValueError):
        pass
    raise UsageError(f"{file} is damaged; choose another folder for --out")


def saved_plan(path: Path) -> Plan:
    """The plan of the experiment in a folder.

    Raises:
        UsageError: as `saved_experiment`.
    """
    options = saved_experiment(path)["options"]
    try:
        return Plan.from_options(options)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path / EXPERIMENT} is damaged: {error}; choose another folder for --out") from error


class ExperimentFolder:
    """The folder of one experiment.

    Args:
        path: of the folder; it need not exist.
        plan: of the experiment.

    Raises:
        UsageError: when there is something else at ``path``: a file, a folder of other things, another experiment.
    """

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path = path
        self.plan = plan
        self.check()

    def check(self) -> None:
        """Raises `UsageError` when there is something else at the path."""
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{self.path} is a file; choose a folder for --out")
        if not self.exists:
            if self.path.is_dir() and not all(is_partial(item) or item.name == LOCK for item in self.path.iterdir()):
                raise UsageError(
                    f"{self.path} holds files, but no experiment; choose an empty or a new folder for --out"
                )
            return
        changed = difference(saved_experiment(self.path)["options"], self.plan)
        if changed:
            raise UsageError(
                f"{self.path} holds another experiment: {changed}; give --resume and --out alone to go on with it, "
                "--add-methods or --add-seeds to extend it, or choose another --out"
            )

    @property
    def exists(self) -> bool:
        """Whether an experiment was begun here."""
        return (self.path / EXPERIMENT).exists()

    def create(self, prepared: Prepared) -> str | None:
        """Writes what the folder holds, unless that was done before.

        Returns:
            How the software or the machine differs from those that began the experiment; None if they do not.

        Raises:
            UsageError: for data that are others than those the experiment was begun with.
        """
        now = environment(prepared.task.device)
        if not self.exists:
            self._write(prepared, now)
            return None
        saved = saved_experiment(self.path)
        if saved.get("task_id") != task_digest(prepared.task.identity()):
            raise UsageError(f"{self.path} was begun with other data: {_changed_part(saved, prepared)}")
        was = saved["environment"]
        changed = [f"{name} {was.get(name)} (now {now[name]})" for name in now if was.get(name) != now[name]]
        return f"begun with {', '.join(changed)}: weights may differ in the last bits" if changed else None

    def _write(self, prepared: Prepared, environment: Mapping[str, Any]) -> None:
        task, identity = prepared.task, prepared.task.identity()
        described = {
            "options": self.plan.options(),
            "identity": identity,
            "task_id": task_digest(identity),
            "name": task.name,
            "unit": task.unit,
            "budget": prepared.budget,
            "metrics": [asdict(metric) for metric in task.metrics],
            "environment": environment,
        }
        write_json(self.path / EXPERIMENT, described)

    def extend(self, plan: Plan) -> None:
        """Writes down that the experiment has more methods and seeds now."""
        write_json(self.path / EXPERIMENT, {**saved_experiment(self.path), "options": plan.options()})
        self.plan = plan

    def run(self, spec: Spec, seed: int) -> Path:
        """The folder of one run."""
        return self.path / spec.slug / f"seed-{seed}"

    def result(self, spec: Spec, seed: int) -> Result | None:
        """How a run ended, or None if it has not.

        Raises:
            UsageError: for a damaged file.
        """
        path = self.run(spec, seed) / RESULT
        if not path.exists():
            return None
        try:
            return Result(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise UsageError(f"{path} is damaged; remove it to finish that run again") from error

    def ends(self) -> dict[tuple[Spec, int], Result | None]:
        """How every run ended, seed by seed."""
        return {run: self.result(*run) for run in self.plan.runs()}


def _changed_part(saved: Mapping[str, Any], prepared: Prepared) -> str:
    was, now = saved.get("identity"), json.loads(json.dumps(prepared.task.identity()))
    parts = [name for name in now if not isinstance(was, dict) or was.get(name) != now[name]]
    held_out = isinstance(was, dict) and was.get("images", {}).get("held-out") != now.get("images", {}).get("held-out")
    said = "what is held out of them differs" if held_out else f"{', '.join(parts)} differ"
    return f"{said}; use what it was begun with, or choose another --out"


def environment(device: torch.device) -> dict[str, str | int]:
    """What besides the plan can change the last bits of a result."""
    accelerator = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lookaround": importlib.metadata.version("lookaround"),
        "platform": platform.platform(),
        "device": f"{device.type}, {accelerator}",
        "threads": torch.get_num_threads(),
    }
