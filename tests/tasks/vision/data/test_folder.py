from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lookaround.tasks.vision.data import DataError, decoding, folder, load_data
from lookaround.tasks.vision.data.decoding import FILES_PER_TASK

TARBALL = Path(__file__).parents[2].parent / "shared" / "data" / "cifar10_jpeg.tar.xz"


def save(path: Path, seed: int, mode: str = "RGB", size: tuple[int, int] = (6, 5)) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return np.asarray(image)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for part, count in (("train", 3), ("test", 2)):
        for number, name in enumerate(("cat", "dog")):
            for index in range(count):
                save(tmp_path / part / name / f"{index}.png", 10 * number + index)
    return tmp_path


def test_reads_every_pixel_in_order(tree):
    data = load_data("folder", tree)
    assert data.name == tree.name
    assert data.classes == ("cat", "dog")
    assert data.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.test_labels.tolist() == [0, 0, 1, 1]
    files = [tree / "train" / name / f"{index}.png" for name in ("cat", "dog") for index in range(3)]
    expected = np.stack([np.asarray(Image.open(file)) for file in files]).transpose(0, 3, 1, 2)
    assert data.train_images.shape == (6, 3, 5, 6)
    assert torch.equal(data.train_images, torch.from_numpy(expected.copy()))


def test_more_files_than_a_thread_takes_at_once_stay_in_order(tree):
    for index in range(FILES_PER_TASK + 20):
        save(tree / "train" / "cat" / f"{index:04}.png", index, "L", (6, 5))
    data = load_data("folder", tree)
    files = sorted((tree / "train" / "cat").iterdir())
    assert (data.train_labels == 0).sum() == len(files)
    for index in (0, FILES_PER_TASK - 1, FILES_PER_TASK, len(files) - 1):
        expected = np.asarray(Image.open(files[index]).convert("RGB")).transpose(2, 0, 1)
        assert torch.equal(data.train_images[index], torch.from_numpy(expected.copy()))


def test_val_serves_where_there_is_no_test(tree):
    before = load_data("folder", tree)
    (tree / "test").rename(tree / "val")
    assert torch.equal(load_data("folder", tree).test_images, before.test_images)


def test_test_comes_before_val(tree):
    save(tree / "val" / "cat" / "0.png", 99)
    assert len(load_data("folder", tree).test_labels) == 4


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_grayscale_stays_one_channel(tmp_path, mode):
    pixels = save(tmp_path / "train" / "a" / "0.png", 0, mode)
    save(tmp_path / "test" / "a" / "0.png", 1, mode)
    data = load_data("folder", tmp_path)
    assert data.train_images.shape == (1, 1, 5, 6)
    expected = np.asarray(Image.fromarray(pixels).convert("L")) if mode != "1" else pixels.astype(np.uint8) * 255
    assert torch.equal(data.train_images[0, 0], torch.from_numpy(expected.copy()))


@pytest.mark.parametrize("colored", ["train/a/0.png", "train/a/1.png", "test/a/0.png"])
def test_one_rgb_image_makes_all_rgb(tmp_path, colored):
    for index, path in enumerate(("train/a/0.png", "train/a/1.png", "test/a/0.png")):
        save(tmp_path / path, index, "RGB" if path == colored else "L")
    data = load_data("folder", tmp_path)
    for images, paths in (
        (data.train_images, ("train/a/0.png", "train/a/1.png")),
        (data.test_images, ("test/a/0.png",)),
    ):
        expected = [np.asarray(Image.open(tmp_path / path).convert("RGB")).transpose(2, 0, 1) for path in paths]
        assert torch.equal(images, torch.from_numpy(np.stack(expected)))


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_other_colour_modes_become_rgb(tree, mode):
    path = tree / "train" / "cat" / "0.png"
    save(path, 5, mode)
    expected = np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1)
    assert torch.equal(load_data("folder", tree).train_images[0], torch.from_numpy(expected.copy()))


def test_files_that_are_no_images_by_name_are_passed_over(tree):
    (tree / "train" / "cat" / "notes.txt").write_text("no image")
    (tree / "train" / "cat" / ".hidden.png").write_text("no image")
    (tree / "train" / ".cache").mkdir()
    assert len(load_data("folder", tree).train_labels) == 6


def test_size_resizes(tree):
    save(tree / "train" / "cat" / "0.png", 0, size=(9, 7))
    data = load_data("folder", tree, size=4)
    assert data.train_images.shape == (6, 3, 4, 4)
    image = Image.open(tree / "train" / "cat" / "0.png").resize((4, 4), Image.Resampling.BILINEAR)
    assert torch.equal(data.train_images[0], torch.from_numpy(np.array(image)).permute(2, 0, 1))
    with pytest.raises(ValueError, match="--image-size must be at least 1 pixel, got 0"):
        load_data("folder", tree, size=0)


def expect(tree: Path, match: str) -> None:
    with pytest.raises(DataError, match=match) as caught:
        load_data("folder", tree)
    assert "\n" not in str(caught.value)


def test_images_of_two_sizes(tree):
    save(tree / "train" / "dog" / "1.png", 0, size=(9, 7))
    expect(
        tree, r"one size: most are 6×5 \(width×height\), .*train/dog/1.png is 9×7; resize them all with --image-size$"
    )


def test_many_images_of_other_sizes_are_counted(tree):
    for index in range(8):
        save(tree / "train" / "dog" / f"odd{index}.png", 0, size=(9, 7 + index % 2))
    for index in range(9):
        save(tree / "train" / "dog" / f"usual{index}.png", 0)
    expect(tree, r"most are 6×5 .*odd6.png is 9×7, .*odd1.png is 9×8 and 3 more; resize")


def test_training_and_test_of_two_sizes(tree):
    for path in (tree / "test").rglob("*.png"):
        save(path, 0, size=(9, 7))
    expect(tree, r"most are 6×5 .*test/cat/0.png is 9×7, .*test/dog/1.png is 9×7; resize")


def test_missing_folders(tree, tmp_path_factory):
    expect(tmp_path_factory.mktemp("empty"), r"there is no folder .*/train")
    (tree / "test").rename(tree / "elsewhere")
    expect(tree, r"there is no folder .*/test; an image folder holds train/CLASS/\*")


def test_no_classes(tmp_path):
    (tmp_path / "train").mkdir()
    expect(tmp_path, r"/train holds no class folders")


def test_class_missing_in_test(tree):
    (tree / "test" / "dog").rename(tree / "dog")
    expect(tree, r"class folder .*/test/dog is missing: .*/train/dog has no test images")


def test_class_missing_in_training(tree):
    save(tree / "test" / "emu" / "0.png", 0)
    expect(tree, r"class folder .*/train/emu is missing: .*/test/emu has no training images")


def test_empty_class(tree):
    (tree / "train" / "emu").mkdir()
    (tree / "test" / "emu").mkdir()
    expect(tree, r"class folder .*/train/emu holds no images")


def test_not_an_image(tree):
    (tree / "train" / "dog" / "1.png").write_bytes(b"this is text")
    expect(tree, r"^cannot decode an image: .*/train/dog/1.png: it is not an image$")


@pytest.mark.parametrize("workers", [None, 0], ids=["in memory", "on the disk"])
def test_all_that_are_no_images_are_named_at_once(tree, workers):
    os.mkfifo(tree / "train" / "cat" / "pipe.png")  # which would be waited for without end
    (tree / "train" / "cat" / "folder.png").mkdir()
    (tree / "train" / "dog" / "1.png").write_bytes(b"this is text")
    (tree / "test" / "dog" / "0.png").write_bytes((tree / "test" / "dog" / "0.png").read_bytes()[:60])
    (tree / "test" / "dog" / "gone.png").symlink_to(tree / "nowhere")
    with pytest.raises(DataError) as caught:
        load_data("folder", tree, workers=workers)
    first, *others = str(caught.value).removeprefix("cannot decode 5 images: ").split("; ")
    assert first == f"{tree}/train/cat/folder.png: it is not a regular file"
    assert others[:2] == [
        f"{tree}/train/cat/pipe.png: it is not a regular file",
        f"{tree}/train/dog/1.png: it is not an image",
    ]
    assert [other.partition(": ")[0] for other in others[2:]] == [
        f"{tree}/test/dog/0.png",
        f"{tree}/test/dog/gone.png",
    ]


def test_a_count_of_images_reads_only_those(tree, monkeypatch):
    for index in range(20):
        save(tree / "train" / "cat" / f"more{index}.png", index)
    whole = load_data("folder", tree)
    opened: list[Path] = []

    def watched(path, size):
        opened.append(path)
        return decode(path, size)

    decode = decoding.decode
    monkeypatch.setattr(decoding, "decode", watched)
    part = load_data("folder", tree, counts=(5, 2), seed=3)
    assert len(opened) == len(set(opened)) == 7
    expected = whole.subset(5, 2, seed=3)
    assert (part.mean, part.std) == (expected.mean, expected.std)
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        assert torch.equal(getattr(part, name), getattr(expected, name))
    with pytest.raises(ValueError, match=r"a subset of the training images of .* takes 1 to 26 images, got 27"):
        load_data("folder", tree, counts=(27, None))


def test_images_that_memory_cannot_hold_are_refused_before_they_are_read(tree, monkeypatch):
    monkeypatch.setattr(folder, "available_memory", lambda: 899)  # ten images of 90 bytes
    expect(tree, r"^10 images of 6×5 pixels take 0.0 GB of memory and 0.0 GB are free; read them .* with --stream")
    monkeypatch.setattr(folder, "available_memory", lambda: 900)
    assert len(load_data("folder", tree).train_labels) == 6


def test_reading_many_images_is_announced(tree, monkeypatch, caplog):
    monkeypatch.setattr(decoding, "_MANY", 6)
    with caplog.at_level("INFO", "lookaround"):
        load_data("folder", tree)
    assert caplog.messages == [f"reading 6 images from {tree}/train"]


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_truncated_image(tree, suffix):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG" if suffix == "png" else "JPEG")
    path = tree / "train" / "cat" / f"broken.{suffix}"
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    expect(tree, rf"cannot decode an image: .*broken.{suffix}: ")


def test_sixteen_bit_pixels_are_refused_and_not_clipped(tree):
    Image.fromarray(np.full((5, 6), 40_000, dtype=np.uint16)).save(tree / "train" / "cat" / "0.png")
    expect(tree, r"cat/0.png: it has pixels of mode I;16; convert it to 8 bits")


@pytest.mark.skipif(not TARBALL.is_file(), reason=f"needs the CIFAR-10 JPEG tree packed in {TARBALL}")
def test_real_photographs(tmp_path):
    with tarfile.open(TARBALL) as archive:
        members = [member for member in archive if member.isfile() and int(Path(member.name).stem) < 10]
        archive.extractall(tmp_path, members, filter="data")
    data = load_data("folder", tmp_path)
    assert data.classes == (
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    )
    assert data.train_images.shape[1:] == (3, 32, 32)
    counts = [len(list((tmp_path / "train" / name).iterdir())) for name in data.classes]
    assert data.train_labels.bincount().tolist() == counts
    assert len(data.train_labels) + len(data.test_labels) == len(members)
    # CIFAR-10's channel means are 0.49, 0.48 and 0.45: decoded with the channels in order, on the scale of [0, 1].
    assert data.mean == pytest.approx((0.49, 0.48, 0.45), abs=0.03)
