"""Files that are either whole or not there, for every room that writes one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PARTIAL = ".partial"


def is_partial(path: Path) -> bool:
    """Whether this is what `atomic` leaves when its process is killed.

    >>> is_partial(Path("runs/.model.safetensors.partial")), is_partial(Path("runs/model.safetensors"))
    (True, False)
    """
    return path.name.startswith(".") and path.name.endswith(_PARTIAL)


@contextmanager
def atomic(path: str | os.PathLike[str], *, sync: bool = False) -> Iterator[Path]:
    """Give a path to write to; when the block ends well it takes the place of ``path``, when the block raises it is removed.

    A reader, or a process killed half-way, finds the old file or the new one. The temporary file stands in the same folder
    under a fixed name, so what a killed process left is overwritten.

    Args:
        path: of the file.
        sync: wait until the bytes are on the disk, so that a power cut does not leave an empty file either.

    Raises:
        OSError: the file cannot be written, with ``path`` for its ``filename``; what was at ``path`` is still there.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic(f"{folder}/a.txt") as temporary:
    ...         _ = temporary.write_text("text")
    ...     os.listdir(folder)
    ['a.txt']
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}{_PARTIAL}")
    try:
        yield temporary
        if sync:
            _sync(temporary)
        os.replace(temporary, target)
    except OSError as error:
        if error.errno is not None and error.filename in (None, os.fspath(temporary)):
            raise OSError(error.errno, error.strerror, os.fspath(target)) from error
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())
