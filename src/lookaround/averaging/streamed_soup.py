"""Soups from file to file: block by block, in a few megabytes of memory."""

import hashlib
import json
import math
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from os import PathLike, fspath

import torch
from torch import Tensor

from lookaround import tensors
from lookaround.averaging.files import Place, aligned, byte_view, header_bytes
from lookaround.averaging.soup import is_averaged, pulls, shares, whole_mean
from lookaround.averaging.sources import MemorySource, SafetensorsSource, Source, open_sources
from lookaround.files import atomic

METADATA_KEY = "lookaround.soup"
"""Where a soup's file lists its ingredients: a JSON list of objects with file, sha256 and weight."""

# Elements a thread works on at a time, and those of one call: below what torch would split over threads of its own.
_BLOCK = 2**18
_PIECE = 2**14
_THREADS = min(4, os.cpu_count() or 1)
_UNKNOWN = "0" * 64


@dataclass(frozen=True)
class RecipeLine:
    """One line of a soup's recipe: the file, its SHA-256 (empty if it was not asked for) and its weight."""

    file: str
    sha256: str
    weight: float


class _Scratch:
    """A thread's memory for one block, as views of every dtype and size it has been asked for."""

    def __init__(self) -> None:
        self._bytes = torch.empty(_BLOCK * 16, dtype=torch.uint8)
        self._views: dict[tuple[torch.dtype, int], tuple[Tensor, list[Tensor]]] = {}

    def view(self, dtype: torch.dtype, count: int) -> tuple[Tensor, list[Tensor]]:
        """The first ``count`` elements, as one tensor and cut into pieces."""
        key = (dtype, count)
        if key not in self._views:
            whole = self._bytes[: count * dtype.itemsize].view(dtype)
            self._views[key] = whole, list(whole.split(_PIECE))
        return self._views[key]


class _Cook:
    """One soup in the making: hands out blocks to threads, and writes each where it belongs."""

    def __init__(self, sources: list[Source], pull: list[float], places: dict[str, Place], out: FileIO) -> None:
        self.sources, self.pull, self.places, self.out = sources, pull, places, out
        self.lock = threading.Lock()
        self.blocks = self._blocks()

    def _blocks(self) -> Iterator[tuple[str, int, int]]:
        for name, place in self.places.items():
            count = math.prod(place.shape)
            for start in range(0, count, _BLOCK):
                yield name, start, min(start + _BLOCK, count)

    def work(self) -> None:
        """Make blocks until there are none left."""
        now, mean = _Scratch(), _Scratch()
        try:
            while True:
                with self.lock:
                    block = next(self.blocks, None)
                if block is None:
                    return
                self._make(*block, now, mean)
        except BaseException:
            for source in self.sources:
                if isinstance(source, SafetensorsSource):
                    source.give_up()
            raise

    def _make(self, name: str, start: int, stop: int, now: _Scratch, mean: _Scratch) -> None:
        dtype = self.places[name].dtype
        whole, pieces = mean.view(tensors.wide_dtype(dtype), stop - start)
        for index, (source, pull) in enumerate(zip(self.sources, self.pull, strict=True)):
            values, cut = self._read(source, name, start, stop, now)
            if index == 0:
                whole.copy_(values)
            elif is_averaged(dtype) and pull:
                tensors.lerp_each_([pieces], cut, [pull])
        result = whole.to(dtype)
        with self.lock:
            self.out.seek(self.places[name].start + start * dtype.itemsize)
            _write(self.out, byte_view(result))

    @staticmethod
    def _read(source: Source, name: str, start: int, stop: int, scratch: _Scratch) -> tuple[Tensor, list[Tensor]]:
        if not isinstance(source, SafetensorsSource):
            values = source.tensor(name).reshape(-1)[start:stop]
            return values, list(values.split(_PIECE))
        place = source.places[name]
        values, pieces = scratch.view(place.dtype, stop - start)
        source.read_into(values, place.start + start * place.dtype.itemsize)
        return values, pieces


def _write(out: FileIO, data: memoryview) -> None:
    while data:
        data = data[out.write(data) :]


@torch.no_grad()
def soup_files(
    out: str | PathLike[str],
    inputs: Sequence[str | PathLike[str]],
    *,
    weights: Sequence[float] | None = None,
    hashes: bool = True,
) -> list[RecipeLine]:
    """Write the weighted mean of several model files as a safetensors file.

    The models are averaged block by block in at least float32, by a few threads; memory holds some megabytes, whatever
    the models' size. Every input is read once; a safetensors file whose tensors come in another order than the first
    input's, and a ``torch.save`` file, is read once more for its hash. A ``torch.save`` file of before PyTorch 1.6 can
    only be read whole: where there is one, the inputs are added one after another, memory holds the whole mean in at
    least float32 and one such file, these are read once more to check them, and all inputs once more for their hashes.

    The output appears only when it is complete, and may take the place of an input. Its metadata lists file, SHA-256
    and weight of each ingredient as JSON under ``lookaround.soup``, beside what all inputs' metadata agree on. Integers
    are copied from the first input.

    Args:
        out: The safetensors file to write.
        inputs: Safetensors files (``*.safetensors``) or ``torch.save`` files of state dicts.
        weights: Their weights, scaled to add up to one; equal ones by default.
        hashes: Compute the inputs' SHA-256. It costs more than the average: about a second for a gigabyte and core.

    Returns:
        The recipe, as in the metadata.

    Raises:
        ValueError: The inputs differ in names, shapes or dtypes (the message lists how), a file is damaged, or the
            weights do not fit.
        OSError: A file cannot be read or written; what was at ``out`` is still there.

    References: Wortsman et al. 2022, "Model soups".
    """
    portions = shares(weights, len(inputs)) if inputs else []
    with open_sources(list(inputs)) as sources:
        layout = aligned(sources[0].layout)
        recipe = [RecipeLine(fspath(p), _UNKNOWN if hashes else "", w) for p, w in zip(inputs, portions, strict=True)]
        head, places = header_bytes(layout, _metadata(sources, recipe))
        with atomic(out) as temporary, FileIO(temporary, "w+") as file:
            _write(file, memoryview(head))
            _cook(_Cook(*_ready(sources, pulls(portions)), places, file), hashes)
            if hashes:
                recipe = [RecipeLine(i.file, _digest(s), i.weight) for i, s in zip(recipe, sources, strict=True)]
                file.seek(0)
                _write(file, memoryview(header_bytes(layout, _metadata(sources, recipe))[0]))
    return recipe


def _ready(sources: list[Source], pull: list[float]) -> tuple[list[Source], list[float]]:
    """The sources if all can be read in blocks, or else their mean as the only one."""
    if all(source.piecewise for source in sources):
        return sources, pull
    return [MemorySource("the mean", whole_mean(sources, pull))], [1.0]


def _cook(cook: _Cook, hashes: bool) -> None:
    for source in cook.sources:
        if hashes and isinstance(source, SafetensorsSource):
            source.hash_in_order([source.places[name] for name in cook.places])
    with ThreadPoolExecutor(_THREADS) as pool:
        for done in [pool.submit(cook.work) for _ in range(_THREADS)]:
            done.result()


def _metadata(sources: Sequence[Source], recipe: Sequence[RecipeLine]) -> dict[str, str]:
    common = set(sources[0].metadata.items())
    for source in sources[1:]:
        common &= set(source.metadata.items())
    common = {(k, v) for k, v in common if k not in (METADATA_KEY, "format")}
    listed = json.dumps([vars(ingredient) for ingredient in recipe])
    return {"format": "pt", METADATA_KEY: listed, **dict(sorted(common))}


def _digest(source: Source) -> str:
    if isinstance(source, SafetensorsSource):
        return source.digest()
    with open(source.name, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
