"""Any folder of images, one folder a class: ``train/CLASS/*`` and ``test/CLASS/*`` (or ``val/CLASS/*``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lookaround.tasks.vision.data.dataset import DataError, ImageData

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
GRAY_MODES = frozenset(("1", "L", "LA", "La"))
COLOR_MODES = frozenset(("RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "CMYK", "YCbCr", "LAB", "HSV"))
FILES_PER_TASK = 128


def load_folder(root: Path, size: int | None = None) -> ImageData:
    """Decodes every image of a class-folder tree into memory, with threads.

    The classes are the folders in ``root/train``, in alphabetical order; the test images lie in the same folders in
    ``root/test``, or in ``root/val`` where there is no ``test``. Files that do not end like an image are passed over.
    All images are grayscale (C = 1) if every file is, and RGB otherwise.

    Args:
        root: the folder that holds ``train`` and ``test`` or ``val``.
        size: resize every image to ``size`` × ``size`` pixels (antialiased bilinear); None asks that all be of one
            size already.

    Raises:
        DataError: naming the path, for a folder that is missing or empty, a test class that training lacks or the
            other way round, a file that is no whole image, or images of different sizes without ``size``.
    """
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    test_root = next((root / part for part in ("test", "val") if (root / part).is_dir()), root / "test")
    classes = _class_names(root / "train")
    _check_same_classes(classes, root / "train", test_root)
    parts: list[Tensor] = []
    for folder in (root / "train", test_root):
        files = [_image_files(folder / name) for name in classes]
        counts = torch.tensor([len(group) for group in files])
        images = _decode_all(list(chain.from_iterable(files)), size)
        parts += [images, torch.arange(len(classes)).repeat_interleave(counts)]
    channels = max(parts[0].shape[1], parts[2].shape[1])
    train, test = (images.expand(-1, channels, -1, -1).contiguous() for images in (parts[0], parts[2]))
    return ImageData.from_images(root.resolve().name, train, parts[1], test, parts[3], classes)


def _class_names(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; an image folder holds train/CLASS/* and test/CLASS/*")
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


def _image_files(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.name[0] != ".")
    if not files:
        raise DataError(f"class folder {folder} holds no images ({', '.join(sorted(SUFFIXES))})")
    return files


def _decode_all(files: Sequence[Path], size: int | None) -> Tensor:
    """The files' pixels, uint8 ``(N, C, H, W)``, written into one tensor as the threads deliver them."""
    decoded = _decoded(files, size)
    first = next(decoded)
    images = torch.empty((len(files), *_chw(first).shape), dtype=torch.uint8)
    for index, (path, pixels) in enumerate(zip(files, chain([first], decoded), strict=True)):
        image = _chw(pixels)
        if image.shape[1:] != images.shape[2:]:
            sizes = f"{_size(image)}, {files[0]} is {_size(images)}"
            raise DataError(f"images must have one size: {path} is {sizes} (width×height); pass size to resize them")
        if len(image) > images.shape[1]:
            images = images.expand(-1, 3, -1, -1).contiguous()
        images[index] = image
    return images


def _decoded(files: Sequence[Path], size: int | None) -> Iterator[Pixels]:
    """Every file's pixels in order; PIL decodes without the interpreter lock, so the threads run side by side."""
    tasks = [files[start : start + FILES_PER_TASK] for start in range(0, len(files), FILES_PER_TASK)]
    with ThreadPoolExecutor() as pool:
        for batch in pool.map(lambda task: [_decode(path, size) for path in task], tasks):
            yield from batch


def _decode(path: Path, size: int | None) -> Pixels:
    import numpy as np
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode not in GRAY_MODES | COLOR_MODES:
                raise DataError(f"{path} has pixels of mode {image.mode}; convert it to 8 bits a channel")
            plain = image.convert("L" if image.mode in GRAY_MODES else "RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        reason = "it is not an image" if "cannot identify" in str(error) else error
        raise DataError(f"cannot decode {path}: {reason}") from error
    if size is not None:
        plain = plain.resize((size, size), Image.Resampling.BILINEAR)
    return np.array(plain)


def _chw(pixels: Pixels) -> Tensor:
    image = torch.from_numpy(pixels)
    return image.unsqueeze(0) if image.ndim == 2 else image.permute(2, 0, 1)


def _size(images: Tensor) -> str:
    return f"{images.shape[-1]}×{images.shape[-2]}"
