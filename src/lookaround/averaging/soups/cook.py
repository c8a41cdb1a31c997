"""The mean of files of tensors, formed block by block by a few threads."""

import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from lookaround import tensors
from lookaround.averaging.files import Place, byte_view
from lookaround.averaging.soups.dtypes import is_averaged
from lookaround.averaging.soups.sources import FileSource

Progress = Callable[[int, int], None]
"""Called now and then with the bytes of the soup that are done and those of the whole soup."""

# Elements a thread works on at a time, and those of one call: below 2**15, which torch would split over threads of its own.
_BLOCK = 2**18
_PIECE = 2**15 - 64
# Of a soup: beyond a few, memory is what they wait for.
THREADS = min(4, os.cpu_count() or 1)

Block = tuple[str, int, int]


class Scratch:
    """A thread's memory for one block, as views of every dtype and size it has been asked for."""

    def __init__(self) -> None:
        self._bytes = torch.empty(_BLOCK * 8, dtype=torch.uint8)
        self._views: dict[tuple[torch.dtype, int], tuple[Tensor, list[Tensor]]] = {}

    def view(self, dtype: torch.dtype, count: int) -> tuple[Tensor, list[Tensor]]:
        """The first ``count`` elements, as one tensor and cut into pieces."""
        if count * dtype.itemsize > len(self._bytes):  # a tensor that is read whole
            whole = torch.empty(count, dtype=dtype)
            return whole, list(whole.split(_PIECE))
        key = (dtype, count)
        if key not in self._views:
            whole = self._bytes[: count * dtype.itemsize].view(dtype)
            self._views[key] = whole, list(whole.split(_PIECE))
        return self._views[key]


def blocks(names: Sequence[str], sources: Sequence[FileSource]) -> Iterator[Block]:
    """The tensors cut into ranges of elements; one whose elements some source has in another order stays whole."""
    for name in names:
        places = [source.place(name)[1] for source in sources]
        count = math.prod(places[0].shape)
        step = count if any(place.strides for place in places) else _BLOCK // max(1, places[0].dtype.itemsize // 8)
        for start in range(0, count, step or 1):
            yield name, start, min(start + step, count)


def read(source: FileSource, block: Block, scratch: Scratch) -> tuple[Tensor, list[Tensor]]:
    """The elements of a block of one source, as one tensor and cut into pieces."""
    name, start, stop = block
    file, place = source.place(name)
    if place.strides is not None:
        values = source.tensor(name).reshape(-1)
        return values, list(values.split(_PIECE))
    values, pieces = scratch.view(place.dtype, stop - start)
    file.read_into(byte_view(values), place.start + start * place.dtype.itemsize)
    return values, pieces


def in_threads(
    work: Callable[[Callable[[], Block | None]], None], todo: Iterator[Block], sources: Sequence[FileSource]
) -> None:
    """Run ``work`` in a few threads, each of which asks for one block after another until there are none.

    When one fails, or the user interrupts, the others finish their block at most, and do not wait for what nobody will read.
    """
    lock, stopped = threading.Lock(), threading.Event()

    def following() -> Block | None:
        with lock:
            return None if stopped.is_set() else next(todo, None)

    def stop() -> None:
        stopped.set()
        for source in sources:
            for file in source.files:
                file.give_up()

    def guarded() -> None:
        try:
            work(following)
        except BaseException:
            stop()
            raise

    with ThreadPoolExecutor(THREADS) as pool:
        try:
            for done in [pool.submit(guarded) for _ in range(THREADS)]:
                done.result()
        except BaseException:
            stop()
            raise


class Cook:
    """A soup in the making: every tensor is a mean of the sources with the weights that ``pulls`` has for its name.

    Args:
        sources: The ingredients.
        pulls: For each tensor, the weight with which each source pulls the running mean of those before it.
        progress: Told of what is done.
        total: Bytes of the whole soup.
    """

    def __init__(
        self, sources: Sequence[FileSource], pulls: Mapping[str, Sequence[float]], progress: Progress | None, total: int
    ) -> None:
        self._sources, self._pulls = sources, pulls
        self._progress, self._done, self._total = progress, 0, total
        self._lock = threading.Lock()

    def write(self, out: int, names: Sequence[str], places: Mapping[str, Place]) -> None:
        """Form the tensors of ``names`` and write each to its place in the open file ``out``."""

        def work(following: Callable[[], Block | None]) -> None:
            now, mean = Scratch(), Scratch()
            while block := following():
                name, start, _ = block
                made = self._make(block, now, mean)
                write_at(out, byte_view(made), places[name].start + start * places[name].dtype.itemsize)
                self._tell(made.numel() * made.element_size())

        in_threads(work, blocks(names, self._sources), self._sources)
        for source in self._sources:
            source.rest()

    def _make(self, block: Block, now: Scratch, mean: Scratch) -> Tensor:
        name, start, stop = block
        dtype = self._sources[0].layout[name][0]
        whole, pieces = mean.view(tensors.wide_dtype(dtype), stop - start)
        first, _ = read(self._sources[0], block, mean if whole.dtype == dtype else now)
        if first.data_ptr() != whole.data_ptr():
            whole.copy_(first)
        for source, pull in zip(self._sources[1:], self._pulls[name][1:], strict=True):
            _, cut = read(source, block, now)
            if is_averaged(dtype) and pull:
                tensors.lerp_each_([pieces], cut, [pull])
        return whole.to(dtype)

    def _tell(self, count: int) -> None:
        if self._progress is not None:
            with self._lock:
                self._done += count
                self._progress(self._done, self._total)


def write_at(out: int, data: memoryview, offset: int) -> None:
    """Write all of ``data`` at ``offset`` of an open file."""
    written = 0
    while written < len(data):
        written += os.pwrite(out, data[written:], offset + written)
