"""The points of a grid that are done, in files that survive being interrupted at any moment.

A journal is a line that says which grid it is of, and one line a point. A line is appended by a single write and counts
once it ends with a newline, so a process that is killed while it writes loses that point and nothing else. Each
process of a split grid has a journal of its own beside the first one's; the first process puts them together at the end.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from lookaround.files import atomic
from lookaround.landscape.probe import Value


class Journal:
    """The finished points of one grid.

    Args:
        path: of the first process's file.
        grid: a fingerprint of everything the values depend on.
        rank: of this process.

    Raises:
        ValueError: there is a file at ``path`` that is no journal, or one of another grid.
    """

    def __init__(self, path: str | os.PathLike[str], grid: str, rank: int = 0) -> None:
        self.path = Path(path)
        self._header = json.dumps({"lookaround landscape": 1, "grid": grid})
        self._own = self.path if rank == 0 else self.path.with_name(f"{self.path.name}.rank{rank}")

    def load(self) -> dict[int, Value]:
        """All points that any process has finished, by their index in the grid."""
        points: dict[int, Value] = {}
        for path in self._files():
            points.update(self._read(path))
        return points

    def _files(self) -> list[Path]:
        parts = sorted(self.path.parent.glob(f"{_literal(self.path.name)}.rank*"))
        return ([self.path] if self.path.exists() else []) + parts

    def _read(self, path: Path) -> dict[int, Value]:
        lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline was cut off
        if not lines or lines[0].decode(errors="replace") != self._header:
            raise ValueError(
                f"{path} holds another grid (other weights, points, data or norm statistics) or no grid at all; remove it "
                "to start anew, or choose another file"
            )
        rows = (json.loads(line) for line in lines[1:])
        return {index: Value(loss, accuracy) for index, loss, accuracy in rows}

    def begin(self) -> None:
        """Make this process's file ready to be appended to: begun, and without a line that was cut off."""
        self._write(self._own, self._read(self._own) if self._own.exists() else {})

    def _write(self, path: Path, points: Mapping[int, Value]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [self._header, *(_line(index, value) for index, value in sorted(points.items()))]
        with atomic(path) as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def append(self, index: int, value: Value) -> None:
        """Store one point."""
        with self._own.open("ab", buffering=0) as file:
            file.write(f"{_line(index, value)}\n".encode())

    def merge(self, points: Mapping[int, Value]) -> None:
        """Put the whole grid into the first process's file and remove the others'; called by the first one alone."""
        self._write(self.path, points)
        for path in self._files()[1:]:
            path.unlink()


def _line(index: int, value: Value) -> str:
    return json.dumps([index, value.loss, value.accuracy])


def _literal(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
