"""What a run reports while it trains: JSON lines for programs, TensorBoard events for eyes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from lookaround.experiment.files import write_atomically

METRICS = "metrics.jsonl"


class Records:
    """Appends records to ``metrics.jsonl`` and to TensorBoard's events in a run's folder.

    Records after ``step`` are taken back first: a run that was killed had reported them, and will again.

    Args:
        folder: of the run; it exists.
        step: minibatches that training goes on from.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = folder / METRICS
        kept = [record for record in read_records(path) if record["step"] <= step]
        write_atomically(path, "".join(map(_line, kept)).encode())
        self._file = path.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one record, which has its ``step``; it is on the disk when this returns.

        Raises:
            OSError: when the disk is full.
        """
        self._file.write(_line(record))
        self._file.flush()
        os.fsync(self._file.fileno())
        for name, value in flat(record):
            if name != "step":
                self._events.add_scalar(name, value, record["step"])
        self._events.flush()

    def __enter__(self) -> Records:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._file.close()  # on a full disk it tries again to write what it still has
        finally:
            self._events.close()


class NoRecords:
    """On the processes that do not report."""

    def write(self, record: Mapping[str, Any]) -> None:
        """Nothing is written."""

    def __enter__(self) -> NoRecords:
        return self

    def __exit__(self, *exception: object) -> None:
        pass


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records in a ``metrics.jsonl``, up to the first line that a killed process left incomplete.

    A file that is not there has none.
    """
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def flat(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a record by name, those inside others as ``metrics/top1``."""
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}/{inner}", number) for inner, number in flat(value))
        else:
            yield name, value


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"
