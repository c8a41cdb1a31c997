"""Images that stay on the disk: decoded when they are asked for, by processes that read ahead."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lookaround.tasks.vision.data.decoding import BadImageError, Faults, decode, decode_all
from lookaround.tasks.vision.data.errors import DataError
from lookaround.tasks.vision.data.images import DIGEST_BYTES, image_digest

_READ_AHEAD = 2
_log = logging.getLogger("lookaround")


@dataclass(frozen=True, eq=False)
class StreamedImages:
    """See `lookaround.tasks.vision.data.images.Images`.

    Attributes:
        files: of the images.
        shape: ``(N, C, H, W)``.
        size: to which they are resized, or None.
        workers: processes that decode; 0 for none but this one.
        device: on which images arrive.
    """

    files: tuple[Path, ...]
    shape: torch.Size
    size: int | None
    workers: int
    device: torch.device
    _sums: Tensor
    _digests: Tensor

    @classmethod
    def survey(
        cls, parts: Sequence[Sequence[Path]], channels: int, size: int | None, workers: int
    ) -> list[StreamedImages]:
        """The images of some splits, each of which is decoded once: to find all that are damaged, and for exact sums and digests.

        Args:
            parts: the files of each split, at least one.
            channels: to which grayscale images are expanded.
            size: to which all are resized, or None.
            workers: see the class.

        Raises:
            DataError: naming every file that is no image, or images of different sizes.
        """
        faults = Faults()
        found = [_surveyed(files, channels, size, faults) for files in parts]
        faults.check()
        cpu = torch.device("cpu")
        return [
            cls(tuple(files), torch.Size((len(files), channels, *shape)), size, workers, cpu, sums, digests)
            for files, (shape, sums, digests) in zip(parts, found, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, indices: Tensor) -> Tensor:
        chosen = indices.tolist()
        files = [self.files[index] for index in chosen]
        found = [self._checked(path, image) for path, image in zip(files, decode_all(files, self.size), strict=True)]
        return torch.stack(found).to(self.device) if found else torch.empty((0, *self.shape[1:]), dtype=torch.uint8)

    def _checked(self, path: Path, image: Tensor | BadImageError) -> Tensor:
        """The image, unless it is another than at the beginning."""
        if isinstance(image, BadImageError) or image.shape[1:] != self.shape[2:]:
            what = image if isinstance(image, BadImageError) else f"it is {image.shape[2]}×{image.shape[1]} now"
            raise DataError(f"{path} has changed since it was read first: {what}")
        return image.expand(self.shape[1], -1, -1)

    def split(self, size: int) -> Iterator[Tensor]:
        indices = range(len(self))
        return self.read(range(start, min(start + size, len(self))) for start in indices[::size])

    def to(self, device: torch.device) -> Self:
        return replace(self, device=torch.device(device))

    def select(self, indices: Tensor) -> Self:
        """Those with these indices, as images of their own."""
        chosen = indices.tolist()
        files = tuple(self.files[index] for index in chosen)
        shape = torch.Size((len(files), *self.shape[1:]))
        return replace(self, files=files, shape=shape, _sums=self._sums[indices], _digests=self._digests[indices])

    def sums(self) -> Tensor:
        """See `channel_sums`."""
        return self._sums.sum(0)

    def digests(self) -> Tensor:
        """See `digest`."""
        return self._digests

    def read(self, batches: Iterable[Sequence[int]], workers: int | None = None) -> Iterator[Tensor]:
        """Images by the indices of one batch after the other, decoded ahead by the workers.

        Raises:
            DataError: for an image that has changed since, or workers that died.
        """
        count = self.workers if workers is None else workers
        cuda = self.device.type == "cuda"
        loader: DataLoader[Any] = DataLoader(
            _Decoder(self),
            batch_sampler=batches,  # type: ignore[arg-type]
            num_workers=count,
            collate_fn=_as_it_is,
            prefetch_factor=_READ_AHEAD if count else None,
            worker_init_fn=_leave_signals_to_the_parent,
            pin_memory=cuda,
            generator=torch.Generator(),  # its own: the global one decides the run
        )
        try:
            for found in loader:
                if isinstance(found, str):
                    raise DataError(found)
                yield found.to(self.device, non_blocking=cuda)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            said = str(error).splitlines()[0]
            raise DataError(f"a process that decodes images has died ({said}); try fewer --workers, or 0") from error


class _Decoder(Dataset[Any]):
    """What a worker does: decodes a batch into one tensor, or says in words what is wrong with it."""

    def __init__(self, images: StreamedImages) -> None:
        self._images = replace(images, device=torch.device("cpu"), _sums=torch.empty(0), _digests=torch.empty(0))

    def __getitems__(self, indices: Sequence[int]) -> Tensor | str:
        images = self._images
        batch = torch.empty((len(indices), *images.shape[1:]), dtype=torch.uint8)
        try:
            for place, index in enumerate(indices):
                path = images.files[index]
                batch[place] = images._checked(path, _decoded(path, images.size))
        except DataError as error:
            return str(error)
        return batch


def _decoded(path: Path, size: int | None) -> Tensor | BadImageError:
    try:
        return decode(path, size)
    except BadImageError as error:
        return error


def _as_it_is(found: Any) -> Any:
    return found


def _leave_signals_to_the_parent(worker: int) -> None:
    """Ctrl-C reaches every process of the terminal; the parent finishes its minibatch, for which it needs the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _surveyed(
    files: Sequence[Path], channels: int, size: int | None, faults: Faults
) -> tuple[tuple[int, int], Tensor, Tensor]:
    sums = torch.zeros(len(files), channels, 2, dtype=torch.int64)
    digests = torch.zeros(len(files), DIGEST_BYTES, dtype=torch.uint8)
    shape = (0, 0)
    for index, (path, image) in enumerate(zip(files, decode_all(files, size), strict=True)):
        if not faults.note(path, image) or isinstance(image, BadImageError):
            continue
        full = image.expand(channels, -1, -1).contiguous()
        shape = (full.shape[1], full.shape[2])
        wide = full.flatten(1).long()
        sums[index] = torch.stack([wide.sum(1), (wide * wide).sum(1)], 1)
        digests[index] = torch.frombuffer(bytearray(image_digest(full.numpy())), dtype=torch.uint8)
    return shape, sums, digests


class ReadAhead:
    """The batches of a sequence, any of which may be asked for, decoded ahead as long as they are asked for in order.

    The first batch asked for, and one that follows the one before, start the workers from there; they wait while others are asked
    for in between. The last batch is kept: some methods ask for it twice.

    Args:
        images: on the disk.
        indices: of a batch, by its number.
        workers: processes of this sequence alone.
    """

    def __init__(self, images: StreamedImages, indices: Callable[[int], Tensor], workers: int) -> None:
        self._images, self._indices, self._workers = images, indices, workers
        self._ahead: Iterator[Tensor] | None = None
        self._next = self._last = -1
        self._kept: Tensor | None = None

    def __getitem__(self, number: int) -> Tensor:
        if number != self._last or self._kept is None:
            self._kept = self._read(number)
            self._last = number
        return self._kept

    def _read(self, number: int) -> Tensor:
        if self._ahead is None or (number != self._next and number == self._last + 1):
            self._ahead = self._images.read(_from(number, self._indices), self._workers)
            self._next = number
        if number != self._next:
            return self._images[self._indices(number)]
        self._next += 1
        return next(self._ahead)


def _from(number: int, indices: Callable[[int], Tensor]) -> Iterator[list[int]]:
    """The batches from this one on, without end."""
    while True:
        yield indices(number).tolist()
        number += 1
