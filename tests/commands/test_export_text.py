"""``lookaround export`` on networks of text: other programs get the same logits, and know what the tokens are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from lookaround.cli import main
from lookaround.tasks.language import load_language
from lookaround.tasks.language.networks import Window
from lookaround.tasks.translation import load_translator
from lookaround.tasks.translation.network import Sentences

COMMON = ["--epochs", "1", "--evaluations", "1", "--device", "cpu"]
TASKS = {
    "lstm": [
        "--task",
        "language",
        "--width",
        "6",
        "--hidden",
        "8",
        "--layers",
        "2",
        "--window",
        "4",
        "--ending",
        "txt",
    ],
    "transformer": ["--task", "language", "--network", "transformer", "--width", "8", "--heads", "2", "--layers", "1"],
    "translator": ["--task", "translation", "--source", "en", "--target", "de", "--width", "8", "--heads", "2"],
}
TASKS["transformer"] += ["--window", "6", "--ending", "txt"]
TASKS["translator"] += ["--layers", "1", "--vocabulary", "270"]
TOKENS = torch.tensor([[2, 3, 4, 1, 2], [4, 3, 0, 2, 1], [1, 1, 2, 3, 4]])
SOURCE, TARGET = torch.tensor([[8, 9, 2], [7, 2, 0]]), torch.tensor([[1, 5, 6, 7, 8], [1, 9, 0, 0, 0]])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A network of each kind, as its safetensors file."""
    folder = tmp_path_factory.mktemp("text")
    for part in ("train", "valid", "test"):
        for ending, words in (("txt", "one two three"), ("en", "one two three"), ("de", "eins zwei drei")):
            (folder / f"{part}.{ending}").write_text(f"{words}\n{words} {words}\n" * 20)
    found = {}
    for name, words in TASKS.items():
        out = folder / name
        method = "adamw:batch=100" if name == "translator" else "adamw:batch=2"
        assert main(["train", *words, "--root", str(folder), *COMMON, "--methods", method, "--out", str(out)]) == 0
        (found[name],) = out.glob("*/seed-0/model.safetensors")
    return found


def expected(name: str, file: Path) -> Tensor:
    with torch.inference_mode():
        if name == "translator":
            return load_translator(file)[0](Sentences(SOURCE, TARGET))
        return load_language(file)[0](Window(TOKENS))


USE = """
import json, sys, torch
notes = {"lookaround.json": ""}
net = torch.export.load("net.pt2", extra_files=notes).module()
inputs = torch.load("inputs.pt")
if sys.argv[1] == "lstm":
    state, logits = inputs["state"], []
    for token in inputs["tokens"].split(1, dim=1):
        one, state = net(token, state)
        logits.append(one)
    logits = torch.cat(logits, 1)
else:
    logits = net(*inputs["arguments"])
torch.save([logits, notes["lookaround.json"]], "logits.pt")
assert not [name for name in sys.modules if name.startswith("lookaround")]
"""


@pytest.mark.parametrize("name", TASKS)
def test_an_exported_program_gives_the_same_logits_with_torch_alone(
    name: str, files: dict[str, Path], tmp_path: Path
) -> None:
    assert main(["export", str(files[name]), str(tmp_path / "net.pt2")]) == 0
    state = tuple(torch.zeros(1, 3, width) for width in (8, 8, 6, 6))
    arguments = (SOURCE, TARGET) if name == "translator" else (TOKENS,)
    torch.save({"tokens": TOKENS, "state": state, "arguments": arguments}, tmp_path / "inputs.pt")
    subprocess.run([sys.executable, "-c", USE, name], cwd=tmp_path, check=True)
    found, notes = torch.load(tmp_path / "logits.pt")
    torch.testing.assert_close(found, expected(name, files[name]), rtol=1e-4, atol=1e-5)
    assert vocabulary(json.loads(notes)) == vocabulary(metadata(files[name]))


def metadata(file: Path) -> dict[str, str]:
    with safe_open(str(file), framework="pt") as opened:
        return opened.metadata()


def vocabulary(notes: dict[str, str]) -> dict[str, object]:
    described: dict[str, object] = json.loads(notes["lookaround.architecture"])["vocabulary"]
    assert described["tokens"]
    return described


@pytest.mark.parametrize("name", TASKS)
def test_an_onnx_file_gives_the_same_logits_at_any_length(name: str, files: dict[str, Path], tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert main(["export", str(files[name]), str(tmp_path / "net.onnx")]) == 0
    session = runtime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    inputs = {"source": SOURCE, "target": TARGET} if name == "translator" else {"tokens": TOKENS}
    fed = {name: value.numpy() for name, value in inputs.items()}
    found = by_token(session, fed["tokens"]) if name == "lstm" else session.run(["logits"], fed)[0]
    torch.testing.assert_close(torch.from_numpy(found), expected(name, files[name]), rtol=1e-4, atol=1e-5)
    assert vocabulary(session.get_modelmeta().custom_metadata_map) == vocabulary(metadata(files[name]))


def by_token(session: Any, tokens: Any) -> Any:
    """Logits of an LSTM that is given its state anew with each token."""
    widths = {"hidden_0": 8, "cell_0": 8, "hidden_1": 6, "cell_1": 6}
    state = {name: np.zeros((1, len(tokens), width), np.float32) for name, width in widths.items()}
    logits = []
    for place in range(tokens.shape[1]):
        one, *after = session.run(None, {"tokens": tokens[:, place : place + 1], **state})
        state = dict(zip(widths, after, strict=True))
        logits.append(one)
    return np.concatenate(logits, 1)


@pytest.mark.parametrize("name", TASKS)
def test_exported_weights_are_the_networks_file(name: str, files: dict[str, Path], tmp_path: Path) -> None:
    assert main(["export", str(files[name].parent), str(tmp_path / "net.safetensors")]) == 0
    assert (tmp_path / "net.safetensors").read_bytes() == files[name].read_bytes()


def test_a_soup_of_language_models_is_exported_like_one(files: dict[str, Path], tmp_path: Path) -> None:
    soup = tmp_path / "soup.safetensors"
    (tmp_path / "copy.safetensors").write_bytes(files["transformer"].read_bytes())
    assert main(["soup", str(soup), str(files["transformer"]), str(tmp_path / "copy.safetensors")]) == 0
    assert main(["export", str(soup), str(tmp_path / "net.pt2")]) == 0
    program = torch.export.load(str(tmp_path / "net.pt2")).module()
    torch.testing.assert_close(program(TOKENS), expected("transformer", files["transformer"]), rtol=1e-4, atol=1e-5)
