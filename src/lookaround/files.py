"""Files and folders that are either whole or not there, for every room that writes one, however many processes do."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_PARTIAL = ".partial"
# Longest name of a file on every common file system, and what a temporary name adds to the file's own.
_LONGEST, _ADDED = 255, len(".") + len(".01234567") + len(_PARTIAL)


def is_partial(path: Path) -> bool:
    """Whether this is what a writer has not finished, or left when its process was killed.

    >>> from pathlib import Path
    >>> from lookaround.files import is_partial
    >>> is_partial(Path("runs/.model.safetensors.5f3c9a10.partial")), is_partial(Path("runs/model.safetensors"))
    (True, False)
    """
    return path.name.startswith(".") and path.name.endswith(_PARTIAL)


@contextmanager
def atomic(path: str | os.PathLike[str], *, sync: bool = False) -> Iterator[Path]:
    """Give a path to write to; when the block ends well it takes the place of ``path``, when the block raises it is removed.

    A reader, or a process killed half-way, finds the old file or the new one. The temporary file stands in the same folder
    under a name of its own (:func:`is_partial` knows it), so several processes may write one file at once: each writes a
    whole one, and the last to finish wins. What a killed process left is removed by the next that writes the same file.
    A symbolic link is followed: the file that it points to is replaced, or made.

    Args:
        path: of the file.
        sync: wait until the bytes are on the disk, so that a power cut does not leave an empty file either.

    Raises:
        OSError: the file cannot be written, with ``path`` for its ``filename``; what was at ``path`` is still there. A
            folder, a device or a pipe is not replaced by a file.

    >>> import os, tempfile
    >>> from lookaround.files import atomic
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic(f"{folder}/a.txt") as temporary:
    ...         _ = temporary.write_text("text")
    ...     os.listdir(folder)
    ['a.txt']
    """
    with _blaming(path):
        target = _followed(path)
        if target.exists() and not target.is_file():
            raise _refusal(errno.EISDIR if target.is_dir() else errno.EINVAL, target)
        with _partial(target, _make_file) as temporary:
            yield temporary
            if sync:
                _sync(temporary)
            os.replace(temporary, target)


@contextmanager
def atomic_folder(
    path: str | os.PathLike[str], *, replaces: Callable[[Path], bool] = lambda folder: False
) -> Iterator[Path]:
    """Give an empty folder to fill; when the block ends well it stands at ``path``, when the block raises it is removed.

    The whole folder appears in one step, as with :func:`atomic`, and several processes may write it at once.

    Args:
        path: of the folder: nothing, an empty folder, or one that may be replaced.
        replaces: whether the folder that stands at ``path`` with something in it may be replaced, with all that it
            holds; by default none may.

    Raises:
        FileExistsError: something else stands at ``path``; nothing is changed.
        OSError: the folder cannot be written, with ``path`` for its ``filename``; what was at ``path`` is still there.

    >>> import os, tempfile
    >>> from lookaround.files import atomic_folder
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_folder(f"{folder}/a") as temporary:
    ...         _ = (temporary / "b.txt").write_text("text")
    ...     os.listdir(folder), os.listdir(f"{folder}/a")
    (['a'], ['b.txt'])
    """
    with _blaming(path):
        target = _followed(path)
        _check_replaceable(target, replaces)
        with _partial(target, _make_folder) as temporary:
            yield temporary
            try:
                os.rename(temporary, target)  # over nothing, or over an empty folder
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                _check_replaceable(target, replaces)
                _exchange(temporary, target)


def _check_replaceable(target: Path, replaces: Callable[[Path], bool]) -> None:
    while target.exists():
        before = target.stat()
        if target.is_dir() and (not any(target.iterdir()) or replaces(target)):
            return
        if _is_still(target, before):  # and not another one by now, while what was looked at is being removed
            raise _refusal(errno.EEXIST, target)


def _followed(path: str | os.PathLike[str]) -> Path:
    """What a symbolic link points to; any other path is itself."""
    target = Path(path)
    if not target.is_symlink():
        return target
    pointed = Path(os.path.realpath(target))
    if pointed.is_symlink():
        raise _refusal(errno.ELOOP, target)
    return pointed


def _refusal(number: int, path: Path) -> OSError:
    text = "Not a regular file" if number == errno.EINVAL else os.strerror(number)
    return OSError(number, text, os.fspath(path))


@contextmanager
def _blaming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Errors about the temporary name, or about no name at all, become errors about ``path``, the name that the user knows."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and _is_ours(error.filename):
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        raise


def _is_ours(filename: object) -> bool:
    if not isinstance(filename, str):
        return filename is None
    return any(map(is_partial, (Path(filename), *Path(filename).parents)))


def _sync(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())


@contextmanager
def _partial(target: Path, make: Callable[[Path], int | None]) -> Iterator[Path]:
    """A new temporary file or folder beside ``target``, locked while its writer lives and removed at the end if it is still there."""
    _sweep(target)
    temporary, held = _begin(target, make)
    try:
        yield temporary
    finally:
        _remove(temporary)
        if held is not None:
            os.close(held)


def _begin(target: Path, make: Callable[[Path], int | None]) -> tuple[Path, int | None]:
    """Make and lock the temporary one. Another process may sweep it away in between; then with another name."""
    while True:
        temporary = target.with_name(f".{_shortened(target.name)}.{secrets.token_hex(4)}{_PARTIAL}")
        held = make(temporary)
        if held is None:
            continue
        if sys.platform == "win32":  # where a file that is open cannot be renamed, and there are no such locks
            os.close(held)
            return temporary, None
        with suppress(OSError):  # a file system without locks: what a killed process leaves there stays
            fcntl.flock(held, fcntl.LOCK_EX)
        if _is_still(temporary, os.fstat(held)):
            return temporary, held
        os.close(held)


def _make_file(path: Path) -> int:
    return os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)


def _make_folder(path: Path) -> int | None:
    path.mkdir()
    try:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:  # swept away already
        return None


def _shortened(name: str) -> str:
    while len(os.fsencode(name)) > _LONGEST - _ADDED:
        name = name[:-1]
    return name


def _is_still(path: Path, before: os.stat_result) -> bool:
    try:
        now = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(now, before) and now.st_ctime_ns == before.st_ctime_ns  # the number alone may be used again


def _sweep(target: Path) -> None:
    """Remove the partial files for ``target`` whose writers are dead: nobody holds their locks."""
    if sys.platform == "win32":
        return
    ours = re.compile(rf"\.{re.escape(_shortened(target.name))}\.[0-9a-f]{{8}}{re.escape(_PARTIAL)}")
    with suppress(OSError):  # a folder that is not there, or may not be listed
        for name in filter(ours.fullmatch, os.listdir(target.parent)):
            _remove_if_left(target.with_name(name))


def _remove_if_left(path: Path) -> None:
    with suppress(OSError):
        held = os.open(path, os.O_NOFOLLOW | (os.O_RDONLY if path.is_dir() else os.O_RDWR))
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(path)
        finally:
            os.close(held)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _exchange(first: Path, second: Path) -> None:
    """Let two folders change places in one step, as Linux and macOS can.

    Raises:
        OSError: they, or the file system, cannot.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    here, swap = -100, 2
    names = os.fsencode(first), os.fsencode(second)
    if sys.platform == "linux" and hasattr(libc, "renameat2"):
        failed = libc.renameat2(here, names[0], here, names[1], swap)
    elif sys.platform == "darwin":
        failed = libc.renamex_np(*names, swap)
    else:
        raise OSError(errno.ENOTSUP, "this system cannot replace a folder in one step; remove it first", str(second))
    if failed:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(second))
