"""A file of tensors, read at any place by several threads, and hashed on the way if it is read in order."""

import os
import threading
from collections.abc import Iterator, Sequence
from itertools import pairwise
from os import PathLike, fspath

from lookaround.averaging.files import Place
from lookaround.averaging.soups.hashing import described, new_hash

_PIECE = 2**20


class StoredFile:
    """One file of an ingredient. It is open from the first reading until :meth:`rest`, and has to stay what it was.

    Attributes:
        path: Of the file, as the user gave it.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = fspath(path)
        self._file: int | None = None
        self._identity = _identity(os.stat(path))
        self._turn = threading.Condition()
        self._hash = new_hash()
        self._hashed = 0
        self._jumps: dict[int, int] | None = None
        self._broken = False

    @property
    def size(self) -> int:
        """In bytes."""
        return self._identity[2]

    def rest(self) -> None:
        """Close the file until it is read again."""
        with self._turn:
            if self._file is not None:
                os.close(self._file)
            self._file = None

    def read_into(self, target: memoryview, offset: int) -> None:
        """Fill ``target`` with the bytes from ``offset`` on; once hashing has begun, calls wait for their turn.

        Raises:
            ValueError: The file has become shorter, or another one stands in its place.
        """
        file = self._opened()
        if self._jumps is None:
            self._fill(file, target, offset)
            return
        with self._turn:
            self._turn.wait_for(lambda: self._broken or self._next() == offset)
            self._hash_until(file, offset)
            self._fill(file, target, offset)
            self._hash.update(target)
            self._hashed = offset + len(target)
            self._turn.notify_all()

    def _next(self) -> int:
        assert self._jumps is not None
        return self._jumps.get(self._hashed, self._hashed)

    def _opened(self) -> int:
        if self._file is None:
            with self._turn:
                self._file = self._open() if self._file is None else self._file
        return self._file

    def _open(self) -> int:
        file = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        if _identity(os.fstat(file)) != self._identity:
            os.close(file)
            raise ValueError(f"{self.path} was changed while it was read; make the soup again when nobody writes to it")
        return file

    def _fill(self, file: int, target: memoryview, offset: int) -> None:
        try:
            filled = 0
            while filled < len(target):
                got = os.preadv(file, [target[filled:]], offset + filled)
                if not got:
                    raise ValueError(f"{self.path} ended while it was read")
                filled += got
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.path) from error

    def hash_in_order(self, places: Sequence[Place]) -> None:
        """Hash what is read from now on, if ``places``, the order of reading, is that of the bytes in the file.

        What lies between them is read and hashed on the way.
        """
        filled = [place for place in places if place.end > place.start]
        if filled and all(before.end <= after.start for before, after in pairwise(filled)):
            self._jumps = {0: filled[0].start, **{before.end: after.start for before, after in pairwise(filled)}}

    def _hash_until(self, file: int, stop: int) -> None:
        while self._hashed < stop:
            piece = memoryview(bytearray(min(_PIECE, stop - self._hashed)))
            self._fill(file, piece, self._hashed)
            self._hash.update(piece)
            self._hashed += len(piece)

    def give_up(self) -> None:
        """Let no one wait for a turn any longer: a reader has failed."""
        with self._turn:
            self._broken = True
            self._turn.notify_all()

    def digest(self) -> str:
        """The hash of the whole file with its algorithm's name: of what was hashed on the way and what follows it."""
        self._hash_until(self._opened(), self.size)
        return described(self._hash)


def _identity(found: os.stat_result) -> tuple[int, ...]:
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def unread(files: Sequence[StoredFile]) -> Iterator[StoredFile]:
    """Those of which :meth:`StoredFile.digest` still has to read much: they were not read in order."""
    return (file for file in files if file._jumps is None)
