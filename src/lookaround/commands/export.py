"""``lookaround export``: a finished network as a file that runs without this package."""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor, nn

from lookaround.commands.parsing import parse
from lookaround.commands.runs import Run, load_run, network_of
from lookaround.errors import UsageError
from lookaround.files import atomic
from lookaround.tasks.vision.networks import Architecture

Format = Literal["safetensors", "torch", "onnx"]


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write a finished image network as one file that runs without this package.

    A RUN is a folder OUT/METHOD/seed-SEED of lookaround train, its safetensors file, or a soup of some. torch and onnx take images as
    they are (uint8, N × channels × height × width, any N), normalize them as the network was trained, and give logits; safetensors is
    the weights alone, under the network's own names.

    lookaround export runs/digits/lookaround/seed-0 digits.onnx
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """The network."""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """The file to write."""
    format: Format | None = None
    """safetensors, torch (torch.export: torch.export.load reads it) or onnx. None: as FILE ends, .safetensors, .pt2 or .onnx."""


def export(words: Sequence[str]) -> None:
    """Runs ``lookaround export``."""
    options = parse(ExportOptions, words, "export")
    kind = options.format or _kind(options.out)
    if options.out.is_dir() or not options.out.parent.is_dir():
        raise UsageError(f"{options.out} cannot be written: give a file in a folder that exists")
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if kind == "onnx" and missing:
        raise UsageError(f"onnx needs {' and '.join(missing)}; add it with: pip install 'lookaround[onnx]'")
    run = load_run(options.run)
    if options.out.exists() and options.out.samefile(run.file):
        raise UsageError(f"{options.out} is the network itself; choose another FILE")
    with atomic(options.out) as partial:
        _WRITERS[kind](run, partial)
    print(f"written: {options.out} ({options.out.stat().st_size / 1e6:.1f} MB)")


def _kind(out: Path) -> Format:
    kinds: dict[str, Format] = {".safetensors": "safetensors", ".pt2": "torch", ".onnx": "onnx"}
    if out.suffix not in kinds:
        raise UsageError(
            f"{out} does not say which format it is to have: end it with {', '.join(kinds)} or add --format"
        )
    return kinds[out.suffix]


class Deployed(nn.Module):
    """From uint8 images, as they are, to logits."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, architecture: Architecture) -> None:
        super().__init__()
        self.model = model
        for name in ("mean", "std"):
            self.register_buffer(name, 255 * torch.tensor(getattr(architecture, name)).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Any:
        return self.model((images.float() - self.mean) / self.std)


def _example(run: Run) -> tuple[nn.Module, Tensor]:
    model, about = network_of([run])
    images = torch.zeros(2, about.channels, about.image_size, about.image_size, dtype=torch.uint8)
    return Deployed(model, about).eval(), images


def _save_weights(run: Run, path: Path) -> None:
    shutil.copyfile(run.file, path)


def _save_program(run: Run, path: Path) -> None:
    module, images = _example(run)
    program = torch.export.export(module, (images,), dynamic_shapes={"images": {0: torch.export.Dim("images", min=1)}})
    with path.open("wb") as file:
        torch.export.save(program, file)


def _save_onnx(run: Run, path: Path) -> None:
    module, images = _example(run)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own dependencies, about each other
        torch.onnx.export(
            module,
            (images,),
            str(path),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes={"images": {0: "n"}},
            dynamo=True,
            external_data=False,
            verbose=False,
        )


_WRITERS: dict[Format, Callable[[Run, Path], None]] = {
    "safetensors": _save_weights,
    "torch": _save_program,
    "onnx": _save_onnx,
}
