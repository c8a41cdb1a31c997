"""Images left on the disk: the same bytes, statistics and minibatches as in memory, in whatever order they are asked for."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lookaround.tasks.vision import VisionConfig, VisionTask
from lookaround.tasks.vision.batches import ImageBatches
from lookaround.tasks.vision.data import DataError, ImageData, load_data
from lookaround.tasks.vision.data.images import channel_sums, digest, moments, select
from lookaround.tasks.vision.data.streamed import ReadAhead, StreamedImages

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """26 training and 10 test images of two classes, gray and coloured."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for part, count in (("train", 13), ("test", 5)):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 256, (9, 9, 3), dtype=np.uint8)
                image = Image.fromarray(pixels).convert("L" if index % 3 == 0 else "RGB")
                image.save(root / part / name / f"{index:02}.png")
    return root


@pytest.fixture(scope="module")
def config(root) -> VisionConfig:
    return VisionConfig(data="folder", root=str(root), width=4, image_size=8, crop_padding=1)


def loaded(config: VisionConfig, **changes: object) -> ImageData:
    return VisionTask.load(replace(config, **changes), CPU).data


@pytest.fixture(scope="module", params=[0, 2], ids=["no workers", "two workers"])
def both(config, request) -> tuple[ImageData, ImageData]:
    return loaded(config), loaded(config, stream=True, workers=request.param)


def test_images_and_statistics_are_those_in_memory(both):
    memory, streamed = both
    assert (streamed.mean, streamed.std, streamed.classes) == (memory.mean, memory.std, memory.classes)
    for part in ("train", "test"):
        images, expected = getattr(streamed, f"{part}_images"), getattr(memory, f"{part}_images")
        assert isinstance(images, StreamedImages)
        assert images.shape == expected.shape
        assert torch.equal(images[torch.tensor([3, 0, 3, 9])], expected[[3, 0, 3, 9]])
        assert images[torch.tensor([], dtype=torch.int64)].shape == (0, 3, 8, 8)
        batches = list(images.split(4))
        assert [len(batch) for batch in batches] == [len(batch) for batch in expected.split(4)]
        assert torch.equal(torch.cat(batches), expected)
        assert torch.equal(getattr(streamed, f"{part}_labels"), getattr(memory, f"{part}_labels"))


def test_parts_of_them_are_those_in_memory(both):
    pairs = [data.subset(11, 3, seed=1) for data in both]
    pairs += [data.hold_out(0.25, seed=2)[0] for data in both]
    for one, other in zip(pairs[::2], pairs[1::2], strict=True):
        assert (one.mean, one.std) == (other.mean, other.std)
        everything = torch.arange(len(one.train_labels))
        assert torch.equal(one.train_images[everything], other.train_images[everything])
    held_out = [data.hold_out(0.25, seed=2)[1] for data in both]
    assert torch.equal(held_out[0], torch.cat(list(held_out[1].split(100))))


def test_digests_say_whether_the_images_are_the_same(both):
    def digests(data: ImageData) -> str:
        return digest([(data.train_images, data.train_labels), (data.test_images, data.test_labels)])

    memory, streamed = both
    assert digests(streamed) == digests(memory)
    assert digests(streamed.subset(11, 3, seed=1)) == digests(memory.subset(11, 3, seed=1)) != digests(memory)
    changed = memory.train_images.clone()
    changed[5, 1, 2, 3] ^= 1
    assert digests(replace(memory, train_images=changed)) != digests(memory)
    swapped = select(memory.train_images, torch.tensor([1, 0, *range(2, 26)]))
    assert digests(replace(memory, train_images=swapped)) != digests(memory)
    assert digests(replace(memory, test_labels=memory.test_labels.flip(0))) != digests(memory)


@pytest.mark.parametrize("copies", ["independent", "shared"])
def test_minibatches_are_those_in_memory_in_whatever_order(both, config, copies):
    memory, streamed = both
    config = replace(config, copies=copies)
    expected = ImageBatches(memory, config, 3, 8, 3)
    found = ImageBatches(streamed, config, 3, 8, 3)
    assert found.per_epoch == expected.per_epoch == 3
    forwards = [(position, branch) for position in range(8) for branch in range(3)]
    twice = [(8, 0), (8, 0), (9, 1), (8, 0), (2, 2), (3, 2), (4, 2), (100, 0), (9, 0), (10, 0)]
    for position, branch in [*forwards, *twice]:
        one, other = expected.copy(position, branch), found.copy(position, branch)
        assert torch.equal(one.inputs, other.inputs), (position, branch)
        assert torch.equal(one.targets, other.targets)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 12), max_size=15))
def test_any_sequence_is_read_as_it_is_asked_for(numbers):
    asked: list[int] = []

    class Counted(list):
        def read(self, batches, workers):
            return (self[torch.tensor(batch)] for batch in batches)

        def __getitem__(self, indices):
            asked.append(int(indices[0]))
            return indices * 10

    reader = ReadAhead(Counted(), lambda number: torch.tensor([number]), 1)
    assert [int(reader[number]) for number in numbers] == [10 * number for number in numbers]


def test_in_order_each_batch_is_read_once_and_by_the_workers_alone(both):
    _, streamed = both
    started: list[int] = []
    images = replace(streamed.train_images)

    class Watched(StreamedImages):
        def read(self, batches, workers=None):
            started.append(1)
            return super().read(batches, workers)

        def __getitem__(self, indices):
            raise AssertionError("a batch was not read ahead")

    watched = Watched(**vars(images))
    reader = ReadAhead(watched, lambda number: torch.tensor([number % 26]), images.workers)
    for number in range(30):
        assert reader[number].shape == (1, 3, 8, 8)
        assert reader[number].shape == (1, 3, 8, 8)
    assert len(started) == 1


def test_reading_draws_nothing_from_the_generator_that_decides_the_run(both):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(both[1].train_images.split(5))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_image_that_has_changed_since_is_named(config, tmp_path):
    root = tmp_path / "copy"
    for path in Path(config.root).rglob("*.png"):
        target = root / path.relative_to(config.root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    images = loaded(config, root=str(root), stream=True, workers=1, image_size=None).train_images
    bad = root / "train" / "cat" / "03.png"
    bad.write_bytes(b"rubbish")
    for read in (lambda: images[torch.tensor([3])], lambda: list(images.split(4))):
        with pytest.raises(DataError, match=r"cat/03.png has changed since it was read first: it is not an image$"):
            read()
    Image.new("RGB", (3, 4)).save(bad)
    with pytest.raises(DataError, match=r"cat/03.png has changed since it was read first: it is 3×4 now$"):
        list(images.split(4))


def test_a_worker_that_dies_is_said_in_one_line(both):
    _, streamed = both
    images = streamed.train_images
    if not images.workers:
        pytest.skip("no process to kill")

    def numbers():
        yield [0]
        for _ in range(3):
            yield [1]
        kill_all()
        yield [2]

    def kill_all():
        """All are dead before anything is heard of it: torch raises from a signal's handler, wherever the program is by then."""
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        for child in map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()):
            os.kill(child, signal.SIGKILL)
            os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])

    with pytest.raises(DataError, match=r"^a process that decodes images has died \(.*\); try fewer --workers, or 0$"):
        for _ in images.read(numbers()):
            pass


def test_streaming_is_for_folders_and_workers_for_streaming():
    with pytest.raises(
        DataError, match=r"^--stream reads the images of an image folder; digits is always read into memory"
    ):
        VisionTask.load(VisionConfig(stream=True), CPU)
    with pytest.raises(ValueError, match=r"^--workers 2 read images ahead with --stream alone"):
        VisionConfig(workers=2)


def test_moments_are_exact_in_any_order():
    images = torch.randint(256, (50, 3, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = moments(channel_sums(images), 50 * 30)
    scaled = images.double() / 255
    assert mean == pytest.approx(scaled.mean((0, 2, 3)).tolist(), rel=1e-14)
    assert std == pytest.approx(scaled.std((0, 2, 3), correction=0).tolist(), rel=1e-13)
    assert moments(channel_sums(images.flip(0)), 1500) == (mean, std)
    assert moments(sum(channel_sums(image[None]) for image in images), 1500) == (mean, std)
    constant = torch.full((3, 1, 2, 2), 7, dtype=torch.uint8)
    assert moments(channel_sums(constant), 12) == ((7 / 255,), (1.0,))


def test_a_folder_streams_as_it_loads(root):
    assert load_data("folder", root, workers=0).name == load_data("folder", root).name
