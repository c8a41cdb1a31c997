"""CIFAR files as they are published: pickles of protocol 2 written by Python 2, put together here by hand."""

from __future__ import annotations

import hashlib
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10, CIFAR100

from lookaround.tasks.vision.data import DataError, load_data
from lookaround.tasks.vision.data.cifar import read_pickle


def text(value: str) -> bytes:
    return b"U" + bytes([len(value)]) + value.encode("latin1")


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def python2_list(items: list[bytes]) -> bytes:
    return b"](" + b"".join(items) + b"e"


def python2_array(array: np.ndarray) -> bytes:
    """What numpy 1.6 on Python 2 wrote: numpy.core.multiarray._reconstruct and a byte string as data."""
    make = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + text("b") + b"tR"
    dtype = b"cnumpy\ndtype\n(" + text("u1") + b"K\x00K\x01tR(K\x03" + text("|") + b"NNN" + number(-1) * 2 + b"K\x00tb"
    shape = b"(" + b"".join(number(side) for side in array.shape) + b"t"
    data = b"T" + struct.pack("<i", array.nbytes) + array.tobytes()
    return make + b"(K\x01" + shape + dtype + b"\x89" + data + b"tb"


def python2_pickle(entries: dict[str, bytes]) -> bytes:
    items = b"".join(text(key) + value for key, value in entries.items())
    return b"\x80\x02}(" + items + b"u."


def batch(seed: int, count: int, classes: int, key: str) -> tuple[bytes, np.ndarray, list[int]]:
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (count, 3072), dtype=np.uint8)
    labels = [index % classes for index in range(count)]
    entries = {"data": python2_array(pixels), key: python2_list([number(label) for label in labels])}
    entries["filenames"] = python2_list([text(f"image_{index}.png") for index in range(count)])
    return python2_pickle(entries), pixels, labels


def write(root: Path, layout: type[CIFAR10], monkeypatch: pytest.MonkeyPatch, key: str, classes: int):
    """A small data set in torchvision's layout, its checksums told to torchvision; returns pixels and labels."""
    folder = root / layout.base_folder
    folder.mkdir()
    seed = 0
    contents: dict[str, list] = {"train_list": [], "test_list": []}
    for attribute, parts in contents.items():
        published = []
        for name, _ in getattr(layout, attribute):
            content, pixels, labels = batch(seed, 2 * classes, classes, key)
            (folder / name).write_bytes(content)
            published.append([name, hashlib.md5(content).hexdigest()])
            parts.append((pixels, labels))
            seed += 1
        monkeypatch.setattr(layout, attribute, published)
    names = python2_pickle({layout.meta["key"]: python2_list([text(f"name {index}") for index in range(classes)])})
    (folder / layout.meta["filename"]).write_bytes(names)
    monkeypatch.setattr(layout, "meta", {**layout.meta, "md5": hashlib.md5(names).hexdigest()})
    return contents


@pytest.mark.parametrize(
    ("name", "layout", "key", "classes"),
    [("cifar10", CIFAR10, "labels", 10), ("cifar100", CIFAR100, "fine_labels", 100)],
)
def test_reads_what_torchvision_keeps_on_disk(tmp_path, monkeypatch, name, layout, key, classes):
    contents = write(tmp_path, layout, monkeypatch, key, classes)
    data = load_data(name, tmp_path)
    assert data.name == name
    assert data.classes == tuple(f"name {index}" for index in range(classes))
    for (images, labels), parts in (
        ((data.train_images, data.train_labels), contents["train_list"]),
        ((data.test_images, data.test_labels), contents["test_list"]),
    ):
        pixels = np.concatenate([part[0] for part in parts]).reshape(-1, 3, 32, 32)
        assert torch.equal(images, torch.from_numpy(pixels))
        assert labels.tolist() == [label for part in parts for label in part[1]]


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_reads_arrays_that_this_python_wrote(protocol):
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    entry = read_pickle(pickle.dumps({"data": pixels, "labels": [1, 2]}, protocol), Path("file"))
    assert entry["labels"] == [1, 2]
    np.testing.assert_array_equal(entry["data"], pixels)


def test_missing_folder_says_how_to_get_it(tmp_path):
    with pytest.raises(DataError, match=r"no folder .*cifar-10-batches-py; get it with .*download=True"):
        load_data("cifar10", tmp_path)


def test_missing_file_is_named(tmp_path, monkeypatch):
    write(tmp_path, CIFAR10, monkeypatch, "labels", 10)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(DataError, match=r"cannot read .*data_batch_3: No such file"):
        load_data("cifar10", tmp_path)


def test_changed_file_is_named(tmp_path, monkeypatch):
    write(tmp_path, CIFAR10, monkeypatch, "labels", 10)
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"test_batch is damaged or not the published file \(MD5"):
        load_data("cifar10", tmp_path)


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_a_pickle_cannot_run_code(tmp_path):
    content = pickle.dumps({"data": Evil(tmp_path / "owned")})
    with pytest.raises(DataError, match=r"asks for \w+.mkdir, which no CIFAR file needs"):
        read_pickle(content, tmp_path / "batch")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps([1, 2]), pickle.dumps({"a": 1})[:-3]])
def test_what_is_no_dictionary_is_refused(content):
    with pytest.raises(DataError, match=r"batch is not a"):
        read_pickle(content, Path("batch"))


def test_files_without_images_are_refused(tmp_path, monkeypatch):
    write(tmp_path, CIFAR10, monkeypatch, "labels", 10)
    content = pickle.dumps({"labels": [1]})
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(content)
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", hashlib.md5(content).hexdigest()]])
    with pytest.raises(DataError, match=r"cifar-10-batches-py holds files without CIFAR's images and labels: 'data'"):
        load_data("cifar10", tmp_path)
