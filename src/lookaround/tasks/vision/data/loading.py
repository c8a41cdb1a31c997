"""Data sets by name."""

from __future__ import annotations

from pathlib import Path

from lookaround.tasks.vision.data.dataset import DataError, ImageData

DATA_SETS = ("digits", "cifar10", "cifar100", "folder")


def load_data(name: str, root: str | Path | None = None, *, size: int | None = None) -> ImageData:
    """A data set by name, read into memory; nothing is ever downloaded.

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

    Raises:
        DataError: in one line that names the path or value at fault, for an unknown name, a missing folder, a corrupt
            or missing file, images of different sizes, or classes that training and test do not share.

    Example:
        >>> from lookaround.tasks.vision.data import load_data
        >>> data = load_data("digits")
        >>> len(data.train_labels), len(data.test_labels), data.classes[:3]
        (1437, 360, ('0', '1', '2'))
    """
    if name not in DATA_SETS:
        raise DataError(f"unknown data set {name!r}; choose one of {', '.join(DATA_SETS)}")
    if size is not None and name != "folder":
        raise DataError(f"size resizes the images of an image folder; {name} has a size of its own")
    if name == "digits":
        from lookaround.tasks.vision.data.digits import load_digits

        return load_digits()
    if root is None:
        raise DataError(f"{name} needs root, the folder that holds the data")
    path = Path(root).expanduser()
    if not path.is_dir():
        raise DataError(f"{name}: there is no folder {path}")
    if name == "folder":
        from lookaround.tasks.vision.data.folder import load_folder

        return load_folder(path, size)
    from lookaround.tasks.vision.data.cifar import load_cifar

    return load_cifar(name, path)
