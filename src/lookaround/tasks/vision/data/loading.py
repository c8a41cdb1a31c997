"""Data sets by name."""

from __future__ import annotations

from pathlib import Path

from lookaround.tasks.checks import ANOTHER_ROOT
from lookaround.tasks.vision.data.dataset import ImageData
from lookaround.tasks.vision.data.errors import DataError

DATA_SETS = ("digits", "cifar10", "cifar100", "folder")


def load_data(
    name: str,
    root: str | Path | None = None,
    *,
    size: int | None = None,
    counts: tuple[int | None, int | None] = (None, None),
    seed: int = 0,
    workers: int | None = None,
) -> ImageData:
    """A data set by name, or a class-balanced part of it; nothing is ever downloaded.

    ``digits``
        scikit-learn's 1,797 real 8x8 images, which come with the wheel; 1,437 to train, 360 to test, always the same.
    ``cifar10``, ``cifar100``
        torchvision's layout: ``root`` holds ``cifar-10-batches-py`` or ``cifar-100-python``.
    ``folder``
        any images: ``root/train/CLASS/*`` and ``root/test/CLASS/*`` or ``root/val/CLASS/*``.

    Args:
        name: one of the names above.
        root: the folder that holds the data; not used by ``digits``.
        size: for ``folder``, resize every image to ``size`` × ``size``; None asks that all be of one size.
        counts: numbers of training and test images, equally many of each class; None for all. Of a folder no others are read.
        seed: of the choice of these images.
        workers: for ``folder``, leave the images on the disk, and read them ahead with so many processes when they are asked for;
            None reads all into memory.

    Raises:
        DataError: in one line that names the path or value at fault, for an unknown name, a missing folder, a corrupt
            or missing file, images of different sizes, or classes that training and test do not share.

    Example:
        >>> from lookaround.tasks.vision.data import load_data
        >>> from lookaround.tasks.vision.data import load_data
        >>> data = load_data("digits")
        >>> len(data.train_labels), len(data.test_labels), data.classes[:3]
        (1437, 360, ('0', '1', '2'))
    """
    if name not in DATA_SETS:
        raise DataError(f"unknown data set {name!r}; choose one of {', '.join(DATA_SETS)}")
    for given, what in ((size, "--image-size resizes"), (workers, "--stream reads")):
        if given is not None and name != "folder":
            raise DataError(f"{what} the images of an image folder; {name} is always read into memory as it is")
    if name == "folder":
        from lookaround.tasks.vision.data.folder import load_folder

        return load_folder(_folder(name, root), size, counts=counts, seed=seed, workers=workers)
    return _whole(name, root).subset(*counts, seed)


def _whole(name: str, root: str | Path | None) -> ImageData:
    if name == "digits":
        from lookaround.tasks.vision.data.digits import load_digits

        return load_digits()
    from lookaround.tasks.vision.data.cifar import load_cifar

    return load_cifar(name, _folder(name, root))


def _folder(name: str, root: str | Path | None) -> Path:
    if root is None:
        raise DataError(f"{name} needs --root, the folder that holds the data")
    path = Path(root).expanduser()
    if not path.is_dir():
        raise DataError(f"{name}: there is no folder {path}; {ANOTHER_ROOT}")
    return path
