"""Checkpoints of a run on several processes: whole or not there, and the last whole one is gone on from."""

import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

_NAME = re.compile(r"step-(\d+)")


class Checkpoints:
    """A folder of checkpoints that all processes write together, by `torch.distributed.checkpoint`.

    Each process writes what it has; what several have is written once. The file that makes a checkpoint whole is written last, so one that
    a process died in is not there for `load`. Every process calls each method, with the same step. They read and write one file system.

    Args:
        folder: made if it is not there; one a run.
        keep: how many whole checkpoints stay, at least 1; older ones are removed after a newer one is whole.

    Example:
        >>> from lookaround.distributed import Checkpoints
        >>> import tempfile, torch
        >>> checkpoints = Checkpoints(tempfile.mkdtemp())
        >>> checkpoints.save(20, {"weight": torch.ones(2)})
        >>> state = {"weight": torch.zeros(2)}
        >>> checkpoints.load(state), state["weight"]
        (20, tensor([1., 1.]))
    """

    def __init__(self, folder: str | Path, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep has to be at least 1, got {keep}")
        self.folder, self.keep = Path(folder), keep

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write a checkpoint after ``step`` steps: tensors, DTensors, plain values, and objects with ``state_dict()``.

        Raises:
            OSError: a file cannot be written; earlier checkpoints stay.
        """
        target = self.folder / f"step-{step}"
        if _first():
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)
        _wait()
        with _one_process_is_fine():
            save(state, checkpoint_id=target)
        if _first():
            for stale in self._stale(step):
                shutil.rmtree(stale)
        _wait()

    def load(self, state: dict[str, Any]) -> int | None:
        """Load the last whole checkpoint into ``state``, in place, and return its step; None, with nothing changed, if there is none.

        Raises:
            CheckpointException: it does not have what ``state`` asks for.
        """
        step = self.latest()
        if step is not None:
            self.read(step, state)
        return step

    def read(self, step: int, state: dict[str, Any]) -> None:
        """Load the checkpoint after ``step`` steps into ``state``, in place."""
        with _one_process_is_fine():
            load(state, checkpoint_id=self.folder / f"step-{step}")

    def latest(self) -> int | None:
        """The step of the last whole checkpoint, on which all processes agree; None if there is none."""
        return _agreed(max(self._whole(), default=None))

    def _whole(self) -> dict[int, Path]:
        found = {int(m[1]): path for path in self.folder.glob("step-*") if (m := _NAME.fullmatch(path.name))}
        return {step: path for step, path in found.items() if (path / ".metadata").exists()}

    def _stale(self, step: int) -> list[Path]:
        """What is not among the newest whole ones up to ``step``: older, half written, or of a later time that was gone back from."""
        kept = sorted((s for s in self._whole() if s <= step), reverse=True)[: self.keep]
        return [path for path in self.folder.glob("step-*") if path.name not in {f"step-{s}" for s in kept}]


@contextmanager
def _one_process_is_fine() -> Iterator[None]:
    """torch warns where there is no process group, as it cannot know that none is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield


def _first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def _wait() -> None:
    if dist.is_initialized():
        dist.barrier()


def _agreed(step: int | None) -> int | None:
    """What the first process has found: file systems of several machines may show a new file at different times."""
    if not dist.is_initialized():
        return step
    found: list[Any] = [step]
    dist.broadcast_object_list(found, src=0, device=torch.device("cpu") if dist.get_backend() == "gloo" else None)
    answer: int | None = found[0]
    return answer
