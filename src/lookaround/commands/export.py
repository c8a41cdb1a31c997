"""``lookaround export``: a finished network as a file that runs without this package."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch.export import Dim

from lookaround.commands.deployed import deployed
from lookaround.commands.parsing import parse, usage_errors
from lookaround.commands.runs import network_file
from lookaround.errors import UsageError
from lookaround.files import atomic

Format = Literal["safetensors", "torch", "onnx"]
NOTES = "lookaround.json"
"""The file in a torch.export archive that says which classes or tokens the numbers stand for."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write a finished network as one file that runs without this package.

    A RUN is a folder OUT/METHOD/seed-SEED of lookaround train, its safetensors file, or a soup of some. torch and onnx give logits.
    Of images they take them as they are (uint8, N × channels × height × width) and normalize them as the network was trained. A
    Transformer takes tokens (int64, N × T); a translator source (N × S, each sentence with its end) and target (N × T, the begin mark
    and what is said so far). An LSTM takes a token of each text (N × 1) and what it carries, hidden_0, cell_0 and so on of each layer
    (1 × N × width, zeros before a text), and gives both anew. N, T and S are free. Classes or vocabulary are in the file's metadata
    (lookaround.json in a torch file). safetensors is the weights alone, under the network's own names, with the same metadata.

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
        raise UsageError(f"onnx needs {' and '.join(missing)}; add it with: pip install '.[onnx]'")
    source = network_file(options.run)
    if options.out.exists() and options.out.samefile(source):
        raise UsageError(f"{options.out} is the network itself; choose another FILE")
    with usage_errors(), atomic(options.out) as partial:
        _WRITERS[kind](source, partial)
    print(f"written: {options.out} ({options.out.stat().st_size / 1e6:.1f} MB)")


def _kind(out: Path) -> Format:
    kinds: dict[str, Format] = {".safetensors": "safetensors", ".pt2": "torch", ".onnx": "onnx"}
    if out.suffix not in kinds:
        raise UsageError(
            f"{out} does not say which format it is to have: end it with {', '.join(kinds)} or add --format"
        )
    return kinds[out.suffix]


def _save_weights(path: Path, target: Path) -> None:
    shutil.copyfile(network_file(path), target)


def _save_program(path: Path, target: Path) -> None:
    ready = deployed(path)
    shapes = _sized(ready.free, cache(partial(Dim, min=1)))
    program = torch.export.export(ready.module, ready.arguments, dynamic_shapes=shapes)
    with target.open("wb") as file:
        torch.export.save(program, file, extra_files={NOTES: json.dumps(ready.notes, ensure_ascii=False)})


def _sized(free: Any, size: Callable[[str], Any]) -> Any:
    """The same nest of tuples, with what ``size`` makes of each name of an axis."""
    if isinstance(free, tuple):
        return tuple(_sized(part, size) for part in free)
    return {axis: size(name) for axis, name in free.items()}


def _save_onnx(path: Path, target: Path) -> None:
    ready = deployed(path)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own dependencies, about each other
        program = torch.onnx.export(
            ready.module,
            ready.arguments,
            input_names=list(ready.inputs),
            output_names=list(ready.outputs),
            dynamic_shapes=ready.free,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(ready.notes)
    program.save(str(target), external_data=False)


_WRITERS: dict[Format, Callable[[Path, Path], None]] = {
    "safetensors": _save_weights,
    "torch": _save_program,
    "onnx": _save_onnx,
}
