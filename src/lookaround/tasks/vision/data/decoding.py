"""Image files into pixels, and what is wrong with those that cannot be."""

from __future__ import annotations

import logging
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from lookaround.tasks.vision.data.errors import DataError

GRAY_MODES = frozenset(("1", "L", "LA", "La"))
COLOR_MODES = frozenset(("RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "CMYK", "YCbCr", "LAB", "HSV"))
FILES_PER_TASK = 128
# Reading so many images takes long enough to be worth a word.
_MANY = 5_000
_log = logging.getLogger("lookaround")


class BadImageError(Exception):
    """One file that is no image to train on; the message says why."""


def decode(path: Path, size: int | None) -> Tensor:
    """One file's pixels, uint8 ``(1, H, W)`` where it is grayscale and ``(3, H, W)`` elsewhere.

    Args:
        path: of the file.
        size: resize it to ``size`` × ``size`` pixels (antialiased bilinear), unless None.

    Raises:
        BadImageError: for what is not a regular file (a pipe would be waited for without end), not an image, cut short, or has
            more than 8 bits a channel.
    """
    import numpy as np
    from PIL import Image

    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise BadImageError("it is not a regular file")
        with Image.open(path) as image:
            if image.mode not in GRAY_MODES | COLOR_MODES:
                raise BadImageError(f"it has pixels of mode {image.mode}; convert it to 8 bits a channel")
            plain = image.convert("L" if image.mode in GRAY_MODES else "RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadImageError("it is not an image" if "cannot identify" in str(error) else str(error)) from error
    if size is not None:
        plain = plain.resize((size, size), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(plain))
    return pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def is_gray(path: Path) -> bool:
    """Whether a file's header says that it is a grayscale image; what cannot be read is no reason to think otherwise."""
    from PIL import Image

    try:
        if stat.S_ISREG(path.stat().st_mode):
            with Image.open(path) as image:
                return image.mode in GRAY_MODES
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        pass
    return True


def decode_all(files: Sequence[Path], size: int | None) -> Iterator[Tensor | BadImageError]:
    """Every file's pixels in order, or what is wrong with it; PIL decodes without the interpreter lock, so threads run side by side."""
    if len(files) >= _MANY:
        _log.info("reading %s images from %s", f"{len(files):,}", files[0].parent.parent)
    tasks = [files[start : start + FILES_PER_TASK] for start in range(0, len(files), FILES_PER_TASK)]
    with ThreadPoolExecutor() as pool:
        for batch in pool.map(lambda task: [_decode_or_error(path, size) for path in task], tasks):
            yield from batch


def _decode_or_error(path: Path, size: int | None) -> Tensor | BadImageError:
    try:
        return decode(path, size)
    except BadImageError as error:
        return error


class Faults:
    """What is wrong with the files of a folder, to be said all at once."""

    def __init__(self) -> None:
        self._bad: list[str] = []
        self._sizes: dict[tuple[int, int], list[Path]] = {}

    def note(self, path: Path, found: Tensor | BadImageError) -> bool:
        """Takes note of one file; whether it is an image."""
        if isinstance(found, BadImageError):
            self._bad.append(f"{path}: {found}")
            return False
        self._sizes.setdefault((found.shape[-1], found.shape[-2]), []).append(path)
        return True

    def check(self) -> None:
        """Raises `DataError` in one line that names every file that is no image, and images of another size than most."""
        if self._bad:
            what = "an image" if len(self._bad) == 1 else f"{len(self._bad)} images"
            raise DataError(f"cannot decode {what}: {'; '.join(self._bad)}")
        if len(self._sizes) > 1:
            usual = max(self._sizes, key=lambda size: len(self._sizes[size]))
            odd = [f"{path} is {w}×{h}" for (w, h), paths in self._sizes.items() if (w, h) != usual for path in paths]
            more = f" and {len(odd) - 5} more" if len(odd) > 5 else ""
            raise DataError(
                f"images must have one size: most are {usual[0]}×{usual[1]} (width×height), {', '.join(odd[:5])}{more}; "
                "resize them all with --image-size"
            )
