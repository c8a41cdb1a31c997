"""``lookaround train --stream``: killed, resumed, with other workers: the same weights as from memory."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lookaround.cli import main

WORDS = ["--model", "small-cnn", "--width", "4", "--epochs", "6", "--crop-padding", "1", "--checkpoint-every", "1"]
METHODS = [
    "--methods",
    "sgd:batch=4,warmup=0.5",
    "lookaround:batch=4,warmup=0.5,k=3",
    "--device",
    "cpu",
    "--threads",
    "1",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 3)):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{index}.png")
    return root


def weights(out: Path) -> list[dict[str, torch.Tensor]]:
    return [load_file(file) for file in sorted(out.glob("*/seed-0/model.safetensors"))]


def test_killed_and_resumed_it_ends_as_from_memory(root, tmp_path):
    words = ["train", "--data", "folder", "--root", str(root), *WORDS, *METHODS]
    assert main([*words, "--out", str(tmp_path / "memory")]) == 0
    streamed = [*words, "--stream", "--workers", "2", "--out", str(tmp_path / "streamed")]
    program = [sys.executable, "-W", "error", "-c", "import sys, lookaround.cli; sys.exit(lookaround.cli.main())"]
    child = subprocess.Popen([*program, *streamed], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for line in child.stdout:
        if "| epoch 2 |" in line:
            break
    child.kill()  # SIGKILL, wherever it and its workers are by now
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    assert not list((tmp_path / "streamed").glob("lookaround*/seed-0/result.json"))
    assert main(["train", "--out", str(tmp_path / "streamed"), "--resume"]) == 0
    expected, found = weights(tmp_path / "memory"), weights(tmp_path / "streamed")
    assert len(expected) == len(found) == 2
    for one, other in zip(expected, found, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert main(["compare", str(tmp_path / "memory"), str(tmp_path / "streamed"), "--out", str(tmp_path / "c")]) == 0


def test_what_cannot_be_streamed_is_refused(tmp_path, refused):
    out = ["--out", str(tmp_path / "out")]
    assert refused("train", "--stream", *out).startswith(
        "--stream reads the images of an image folder; digits is always"
    )
    assert "--workers 2 read images ahead with --stream alone" in refused("train", "--workers", "2", *out)
    assert not (tmp_path / "out").exists()
