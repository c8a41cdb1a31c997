"""Real processes really killed: what they leave, gone on with, is what would have been left without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from torch.utils._pytree import keystr, tree_flatten_with_path

from lookaround.experiment.checkpoints import load_checkpoint
from lookaround.experiment.records import METRICS, read_records

# `python tests/experiment/killed_at_random.py WHOLE KILLED 50` and `differences` were run for the log.
KILLS = int(os.environ.get("KILLS", "8"))


def differences(whole: Path, other: Path) -> list[str]:
    """Files in which two folders differ, but for seconds, and for TensorBoard's events, which hold the time of day."""
    names = [{path.relative_to(root) for path in root.rglob("*") if path.is_file()} for root in (whole, other)]
    seen = [{name for name in found if not name.name.startswith("events.") and name.name != ".lock"} for found in names]
    found = [f"only in one: {name}" for name in sorted(seen[0] ^ seen[1])]
    return found + [str(name) for name in sorted(seen[0] & seen[1]) if content(whole / name) != content(other / name)]


def content(path: Path) -> object:
    """What a file says, but for seconds."""
    if path.name == METRICS:
        return [{**record, "seconds": 0} for record in read_records(path)]
    if path.suffix == ".pt":
        leaves = tree_flatten_with_path({**load_checkpoint(path), "seconds": 0})[0]
        return sorted((keystr(place), plain(leaf)) for place, leaf in leaves)
    if path.suffix == ".json":
        return without_seconds(json.loads(path.read_text()))
    return None if path.name in ("table.md", "seconds.png", "seconds.svg") else path.read_bytes()


def plain(value: object) -> str:
    """A leaf of a checkpoint to the bit, as text."""
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {tuple(value.shape)} {value.numpy().tobytes().hex()}"
    return repr(value)


def without_seconds(value: object) -> object:
    if isinstance(value, dict):
        return {key: without_seconds(item) for key, item in value.items() if key != "seconds"}
    return [without_seconds(item) for item in value] if isinstance(value, list) else value


def test_killed_at_random_moments_every_file_is_as_if_nothing_had_happened(tmp_path):
    """Three settings of lookaround beside sgd at three rates, two seeds, in one folder; extended by a seed, by a method; compared."""
    folders = [tmp_path / "whole", tmp_path / "killed"]
    script = [sys.executable, str(Path(__file__).with_name("killed_at_random.py")), *map(str, folders), str(KILLS)]
    ran = subprocess.run(script, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout.splitlines()[-1]) > KILLS // 2, ran.stdout
    assert len(list((folders[1] / "experiment").rglob("model.safetensors"))) == 7 * 3
    assert differences(folders[0] / "experiment", folders[1] / "experiment") == []
    compared = [{path.name for path in (folder / "compared").iterdir()} for folder in folders]
    assert compared[0] == compared[1]
