"""An experiment's folder: which experiment it holds, and where each run's files are."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

import torch

from lookaround.errors import UsageError
from lookaround.experiment.config import TrainConfig, difference
from lookaround.experiment.files import write_json
from lookaround.experiment.results import RESULT, Divergence, Result
from lookaround.files import is_partial

CONFIG = "config.json"


class ExperimentFolder:
    """The folder of one experiment.

    Args:
        path: of the folder; it need not exist.
        config: of the experiment.

    Raises:
        UsageError: when there is something else at ``path``: a file, a folder of other things, another experiment.
    """

    def __init__(self, path: Path, config: TrainConfig) -> None:
        self.path = path
        self.config = config
        self._check_is_ours()

    def _check_is_ours(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{self.path} is a file; choose a folder for --out")
        if not self.exists:
            if self.path.is_dir() and not all(map(is_partial, self.path.iterdir())):
                raise UsageError(
                    f"{self.path} holds files, but no experiment; choose an empty or a new folder for --out"
                )
            return
        changed = difference(self._saved("config"), self.config)
        if changed:
            raise UsageError(
                f"{self.path} holds another experiment: {changed}; give it its own options to go on, or choose another --out"
            )

    @property
    def exists(self) -> bool:
        """Whether an experiment was begun here."""
        return (self.path / CONFIG).exists()

    def _saved(self, part: str) -> dict[str, Any]:
        path = self.path / CONFIG
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))[part]
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path} is damaged; choose another folder for --out") from error
        if not isinstance(saved, dict):
            raise UsageError(f"{path} is damaged; choose another folder for --out")
        return saved

    def create(self, device: torch.device) -> str | None:
        """Makes the folder and writes what it holds, unless that was done before.

        Returns:
            How the software or the machine differs from those that began the experiment; None if they do not.
        """
        now = environment(device)
        if not self.exists:
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.path / CONFIG, {"config": self.config.as_json(), "environment": now})
            return None
        was = self._saved("environment")
        changed = [f"{name} {was.get(name)} (now {now[name]})" for name in now if was.get(name) != now[name]]
        return f"begun with {', '.join(changed)}: weights may differ in the last bits" if changed else None

    def run(self, method: str, seed: int) -> Path:
        """The folder of one run."""
        return self.path / method / f"seed-{seed}"

    def result(self, method: str, seed: int) -> Result | Divergence | None:
        """How a run ended, or None if it has not.

        Raises:
            UsageError: for a damaged file.
        """
        path = self.run(method, seed) / RESULT
        if not path.exists():
            return None
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            return Divergence(**saved) if "diverged" in saved else Result(**saved)
        except (ValueError, TypeError) as error:
            raise UsageError(f"{path} is damaged; remove it to finish that run again") from error

    def ends(self) -> dict[tuple[str, int], Result | Divergence | None]:
        """How every run ended, seed by seed, so that the methods of a comparison progress together."""
        runs = [(method, seed) for seed in self.config.seeds for method in self.config.methods]
        return {run: self.result(*run) for run in runs}


def environment(device: torch.device) -> dict[str, str | int]:
    """What besides the configuration can change the last bits of a result."""
    accelerator = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lookaround": importlib.metadata.version("lookaround"),
        "platform": platform.platform(),
        "device": f"{device.type}, {accelerator}",
        "threads": torch.get_num_threads(),
    }
