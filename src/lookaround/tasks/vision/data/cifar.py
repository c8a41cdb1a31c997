"""CIFAR-10 and CIFAR-100 from the layout that torchvision keeps on disk, without running what the pickles say."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lookaround.tasks.checks import ANOTHER_ROOT
from lookaround.tasks.vision.data.dataset import ImageData
from lookaround.tasks.vision.data.errors import DataError


def load_cifar(name: str, root: Path) -> ImageData:
    """CIFAR-10 (50,000 + 10,000 images of 10 classes) or CIFAR-100 (the same of 100), 32x32 RGB.

    The published files are Python pickles, which can run any code. So every file's MD5 sum is compared with
    torchvision's, and the reader admits nothing but NumPy arrays and plain containers.

    Args:
        name: ``"cifar10"`` or ``"cifar100"``.
        root: the folder that holds ``cifar-10-batches-py`` or ``cifar-100-python``.

    Raises:
        DataError: naming the file that is missing, changed or not what it should be.
    """
    from torchvision.datasets import CIFAR10, CIFAR100

    layout = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    folder = root / layout.base_folder
    if not folder.is_dir():
        raise DataError(
            f"{name}: there is no folder {folder}; get it with "
            f"`python -c \"from torchvision.datasets import {layout.__name__} as C; C('{root}', download=True)\"` "
            f"or unpack {layout.url} in {root}, or {ANOTHER_ROOT}"
        )
    train = [_read(folder / file, md5) for file, md5 in layout.train_list]
    test = [_read(folder / file, md5) for file, md5 in layout.test_list]
    meta = layout.meta
    classes = _read(folder / meta["filename"], meta["md5"]).get(meta["key"])
    if not isinstance(classes, list):
        raise DataError(f"{name}: {folder / meta['filename']} holds no list {meta['key']!r} of class names")
    return ImageData.from_images(name, *_stack(folder, train), *_stack(folder, test), classes)


def _read(path: Path, md5: str) -> dict[str, Any]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; download the data set again") from error
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise DataError(f"{path} is damaged or not the published file (MD5 {found}, not {md5}); download it again")
    return read_pickle(content, path)


def read_pickle(content: bytes, path: Path) -> dict[str, Any]:
    """The dictionary in a pickle made of plain containers, numbers, strings and NumPy arrays.

    Raises:
        DataError: for a pickle that asks for anything else, is cut short, or holds no dictionary.
    """
    try:
        entry = _ArraysOnly(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # a malformed pickle can raise nearly anything
        raise DataError(f"{path} is not a readable CIFAR file: {error}") from error
    if not isinstance(entry, dict):
        raise DataError(f"{path} is not a CIFAR file: it holds {type(entry).__name__}, not dict")
    return entry


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = _array_parts().get((module, name))
        if found is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR file needs")
        return found


def _array_parts() -> dict[tuple[str, str], Callable[..., Any]]:
    import codecs

    import numpy as np

    # NumPy 2 moved numpy.core and warns at its old name; an array itself says where its rebuilder is now.
    reconstruct = np.empty(0).__reduce__()[0]
    assert callable(reconstruct)
    return {
        ("numpy.core.multiarray", "_reconstruct"): reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): reconstruct,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): codecs.encode,
    }


def _stack(folder: Path, entries: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    import numpy as np

    try:
        pixels = np.concatenate([entry["data"] for entry in entries]).reshape(-1, 3, 32, 32)
        key = "labels" if "labels" in entries[0] else "fine_labels"
        labels = [label for entry in entries for label in entry[key]]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder} holds files without CIFAR's images and labels: {error}") from error
    return torch.from_numpy(pixels), torch.tensor(labels, dtype=torch.int64)
