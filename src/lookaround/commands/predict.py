"""``lookaround predict``: the class of every image, or the translation or perplexity of every line, in some files."""

from __future__ import annotations

import csv
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TextIO

import torch
import tyro
from torch import Tensor, nn

from lookaround.commands.parsing import parse, usage_errors
from lookaround.commands.runs import load_run, network_of
from lookaround.commands.texts import predicted, text_task
from lookaround.errors import UsageError
from lookaround.experiment.running import device_named
from lookaround.files import atomic
from lookaround.tasks.checks import check_ranges
from lookaround.tasks.vision.data.decoding import BadImageError, Faults, decode_all
from lookaround.tasks.vision.data.folder import SUFFIXES
from lookaround.tasks.vision.networks import Architecture

HEADER = ("file", "class", "probability")


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Classify images, translate sentences, or score text: a line of CSV for each image, or for each line of a text.

    A RUN is a folder OUT/METHOD/seed-SEED of lookaround train, its safetensors file, or a soup of some. Images are resized to the
    network's size and normalized as it was trained; of a folder, all images in it and below it are taken. An image's line has its
    likeliest class and the probability of it; a text's line has its translation, or as a language model reads it its tokens and
    their perplexity.

    lookaround predict runs/photos/lookaround/seed-0 holiday/ --out predictions.csv
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """The network."""
    files: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="FILE...")]
    """Image files, or folders of them; for a network of text UTF-8 files, or folders of .txt files."""
    out: Path | None = None
    """CSV file to write. None: standard output."""
    batch_size: int = 500
    """Images in a batch; sentences go by the same number."""
    beam: int | None = None
    """Of translators: hypotheses of the search, 1 is greedy. None: as in their experiment."""
    device: str = "auto"
    """cpu, cuda, cuda:N …; auto takes CUDA when there is one."""

    def __post_init__(self) -> None:
        check_ranges(self, {"batch_size": (1, None), "beam": (1, None)})


def predict(words: Sequence[str]) -> None:
    """Runs ``lookaround predict``."""
    options = parse(PredictOptions, words, "predict")
    out = options.out
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise UsageError(f"{out} cannot be written: give a file in a folder that exists")
    of_text = text_task(options.run) is not None
    rows = _of_text(options) if of_text else _of_images(options)
    if out is None:
        _write(sys.stdout, rows)
        return
    made = list(rows)
    with atomic(out) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        _write(file, made)
    print(f"{len(made) - 1:,} {'lines' if of_text else 'images'}: {out}")


def _of_text(options: PredictOptions) -> Iterator[tuple[str, ...]]:
    if not options.files:
        raise UsageError("nothing to predict; give text files after the RUN")
    with usage_errors():
        files = tuple(text_files(options.files))
        yield from predicted(options.run, files, options.batch_size, device_named(options.device), options.beam)


def _of_images(options: PredictOptions) -> Iterator[tuple[str, ...]]:
    if options.beam is not None:
        raise UsageError(
            f"--beam {options.beam} is how translations are searched for, and {options.run} is no translator; leave it out"
        )
    files = list(image_files(options.files))
    model, architecture = network_of([load_run(options.run)])
    device = device_named(options.device)
    _check(files, architecture)
    yield HEADER
    yield from _rows(model.to(device), architecture, files, options.batch_size, device)


def text_files(paths: Sequence[Path]) -> Iterator[Path]:
    """The files among the paths, and the ``.txt`` files in the folders among them and below, by name.

    Raises:
        UsageError: for a folder without any.
    """
    for path in paths:
        yield from _of_folder(path, {".txt"}, "no .txt file; give text files, or folders of .txt files")


def image_files(paths: Sequence[Path]) -> Iterator[Path]:
    """The files among the paths, and the images in the folders among them and below, by name.

    Raises:
        UsageError: for a path that is not there, a folder without images, or no path at all.
    """
    if not paths:
        raise UsageError("nothing to predict; give image files, or folders of them, after the RUN")
    for path in paths:
        if not path.exists():
            raise UsageError(f"there is no {path}; give image files, or folders of them")
        yield from _of_folder(path, SUFFIXES, f"no images ({', '.join(sorted(SUFFIXES))})")


def _of_folder(path: Path, suffixes: Collection[str], none: str) -> list[Path]:
    """The files in a folder and below that end so, but for hidden ones, by name; of a file itself, the file."""
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in suffixes and file.name[0] != ".")
    if not found:
        raise UsageError(f"{path} holds {none}")
    return found


def _rows(
    model: nn.Module, architecture: Architecture, files: Sequence[Path], size: int, device: torch.device
) -> Iterator[tuple[str, str, str]]:
    with torch.inference_mode():
        for start in range(0, len(files), size):
            part = files[start : start + size]
            images = torch.stack([_fitting(image, architecture) for image in _decoded(part, architecture)])
            probabilities = model(architecture.prepare(images.to(device))).float().softmax(1).cpu()
            for path, (value, index) in zip(part, zip(*probabilities.max(1), strict=True), strict=True):
                yield str(path), architecture.classes[int(index)], f"{float(value):.6f}"


def _check(files: Sequence[Path], architecture: Architecture) -> None:
    """Raises `DataError` that names every file that is no image, before the first line is written."""
    faults = Faults()
    for path, image in zip(files, decode_all(files, architecture.image_size), strict=True):
        faults.note(path, image)
    faults.check()


def _decoded(files: Sequence[Path], architecture: Architecture) -> Iterator[Tensor]:
    for image in decode_all(files, architecture.image_size):
        assert not isinstance(image, BadImageError)
        yield image


def _fitting(image: Tensor, architecture: Architecture) -> Tensor:
    """The image with the network's channels: gray ones are repeated, coloured ones weighted as in ITU-R 601-2 (as PIL does)."""
    if len(image) > architecture.channels:
        weights = torch.tensor([299, 587, 114], dtype=torch.int64).view(3, 1, 1)
        return ((image.long() * weights).sum(0, keepdim=True) / 1000).round().to(torch.uint8)
    return image.expand(architecture.channels, -1, -1)


def _write(file: TextIO, rows: Iterable[tuple[str, ...]]) -> None:
    csv.writer(file, lineterminator="\n").writerows(rows)
