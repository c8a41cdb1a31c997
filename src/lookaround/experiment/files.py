"""What an experiment writes, on the disk when the call returns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lookaround.files import atomic


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Puts ``content`` at ``path`` in one step: a reader, or a process killed half-way, leaves the old file or the new.

    Raises:
        OSError: when the disk is full or the folder cannot be written; the old file is untouched. ``filename`` of the error
            is ``path``.
    """
    with atomic(path, sync=True) as partial:
        partial.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Writes ``value`` as indented JSON, atomically; NaN and infinities are refused, as JSON has none."""
    write_atomically(path, (json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode())
