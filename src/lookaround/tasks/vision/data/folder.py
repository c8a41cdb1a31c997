"""Any folder of images, one folder a class: ``train/CLASS/*`` and ``test/CLASS/*`` (or ``val/CLASS/*``)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lookaround.tasks.checks import ANOTHER_ROOT
from lookaround.tasks.vision.data.dataset import ImageData, choose_balanced
from lookaround.tasks.vision.data.decoding import BadImageError, Faults, decode_all, is_gray
from lookaround.tasks.vision.data.errors import DataError
from lookaround.tasks.vision.data.images import Images
from lookaround.tasks.vision.data.streamed import StreamedImages

SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))


class Part(NamedTuple):
    """The files of one split and their labels."""

    files: list[Path]
    labels: Tensor


def load_folder(
    root: Path,
    size: int | None = None,
    *,
    counts: tuple[int | None, int | None] = (None, None),
    seed: int = 0,
    workers: int | None = None,
) -> ImageData:
    """Reads a class-folder tree into memory, or leaves it on the disk and reads images when they are asked for.

    The classes are the folders in ``root/train``, in alphabetical order; the test images lie in the same folders in
    ``root/test``, or in ``root/val`` where there is no ``test``. Files that do not end like an image are passed over.
    All images are grayscale (C = 1) if every file that is read is, and RGB otherwise.

    Args:
        root: the folder that holds ``train`` and ``test`` or ``val``.
        size: resize every image to ``size`` × ``size`` pixels (antialiased bilinear); None asks that all be of one
            size already.
        counts: numbers of training and test images to read, equally many of each class; the others are not opened. None: all.
        seed: of the choice of these images.
        workers: processes that read ahead; None decodes everything into memory now. On the disk every image is decoded once at
            the beginning, to find damaged ones and to measure mean and standard deviation.

    Raises:
        DataError: naming the path, for a folder that is missing or empty, a test class that training lacks or the
            other way round; naming all of them, for files that are no whole images, or images of different sizes without ``size``;
            for images that do not fit into memory.
        ValueError: for a count outside what there is, or a size below 1.
    """
    if size is not None and size < 1:
        raise ValueError(f"--image-size must be at least 1 pixel, got {size}")
    test_root = next((root / part for part in ("test", "val") if (root / part).is_dir()), root / "test")
    classes = _class_names(root / "train")
    _check_same_classes(classes, root / "train", test_root)
    name = root.resolve().name
    listed = zip((root / "train", test_root), ("training", "test"), counts, strict=True)
    train, test = (_chosen(_listed(folder, classes), f"{what} images of {name}", n, seed) for folder, what, n in listed)
    images = _in_memory((train, test), size) if workers is None else _on_disk((train, test), size, workers)
    return ImageData.from_images(name, images[0], train.labels, images[1], test.labels, classes)


def _class_names(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise DataError(
            f"there is no folder {folder}; an image folder holds train/CLASS/* and test/CLASS/*; {ANOTHER_ROOT}"
        )
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DataError(f"{folder} holds no class folders; an image folder holds train/CLASS/* and test/CLASS/*")
    return names


def _check_same_classes(classes: Sequence[str], train: Path, test: Path) -> None:
    found = _class_names(test)
    for name in classes:
        if name not in found:
            raise DataError(f"class folder {test / name} is missing: {train / name} has no test images")
    for name in found:
        if name not in classes:
            raise DataError(f"class folder {train / name} is missing: {test / name} has no training images")


def _listed(folder: Path, classes: Sequence[str]) -> Part:
    groups = [_image_files(folder / name) for name in classes]
    counts = torch.tensor([len(group) for group in groups])
    return Part(list(chain.from_iterable(groups)), torch.arange(len(classes)).repeat_interleave(counts))


def _image_files(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.name[0] != ".")
    if not files:
        raise DataError(f"class folder {folder} holds no images ({', '.join(sorted(SUFFIXES))})")
    return files


def _chosen(part: Part, what: str, count: int | None, seed: int) -> Part:
    if count is None:
        return part
    chosen = choose_balanced(part.labels, what, count, seed)
    return Part([part.files[index] for index in chosen.tolist()], part.labels[chosen])


def _on_disk(parts: Sequence[Part], size: int | None, workers: int) -> Sequence[Images]:
    files = [part.files for part in parts]
    channels = 1 if all(map(is_gray, chain.from_iterable(files))) else 3
    return StreamedImages.survey(files, channels, size, workers)


def _in_memory(parts: Sequence[Part], size: int | None) -> Sequence[Images]:
    """The pixels of each split, uint8 ``(N, C, H, W)`` with C in common, written into one tensor as the threads deliver them."""
    faults = Faults()
    decoded = [_decoded(part.files, size, faults, sum(len(p.files) for p in parts)) for part in parts]
    faults.check()
    found = [images for images in decoded if images is not None]
    channels = max(images.shape[1] for images in found)
    return [images.expand(-1, channels, -1, -1).contiguous() for images in found]


def _decoded(files: Sequence[Path], size: int | None, faults: Faults, total: int) -> Tensor | None:
    images: Tensor | None = None
    for index, (path, image) in enumerate(zip(files, decode_all(files, size), strict=True)):
        if not faults.note(path, image) or isinstance(image, BadImageError):
            continue
        if images is None:
            _check_fits(total, image)
            images = torch.empty((len(files), *image.shape), dtype=torch.uint8)
        if image.shape[1:] != images.shape[2:]:
            continue
        if len(image) > images.shape[1]:
            images = images.expand(-1, 3, -1, -1).contiguous()
        images[index] = image
    return images


def _check_fits(count: int, image: Tensor) -> None:
    """Raises `DataError` where so many images of this size are more than the machine has memory for."""
    needed, free = count * image.numel(), available_memory()
    if free is not None and needed > free:
        raise DataError(
            f"{count:,} images of {image.shape[-1]}×{image.shape[-2]} pixels take {needed / 1e9:.1f} GB of memory and "
            f"{free / 1e9:.1f} GB are free; read them as they are needed with --stream, fewer with --train-images, or "
            "smaller ones with --image-size"
        )


def available_memory() -> int | None:
    """Bytes that can be had without swapping, where the system says so (Linux)."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None
