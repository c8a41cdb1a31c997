"""A training that is killed again and again under torchrun: it goes on by itself, and ends as if nothing had happened."""

import json
import runpy
from pathlib import Path

import pytest
import torch

killing = runpy.run_path(str(Path(__file__).with_name("killing.py")))
STEPS = 320


@pytest.mark.distributed
@pytest.mark.parametrize("seed", [0, 1])
def test_ten_random_kills_change_nothing(tmp_path, seed):
    undisturbed = killing["torchrun"](tmp_path / "undisturbed", STEPS)
    report = killing["kill_at_random"](tmp_path / "killed", 10, seed, STEPS)
    assert undisturbed.wait(timeout=600) == 0
    assert report["code"] == 0, (tmp_path / "killed" / "log").read_text()
    assert report["kills"] == 10
    assert report["most steps lost"] <= killing["EVERY"]
    ends = [torch.load(tmp_path / which / "final.pt") for which in ("undisturbed", "killed")]
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name


@pytest.mark.distributed
def test_ten_random_kills_of_lookaround_train_change_nothing(tmp_path):
    undisturbed = killing["torchrun"](tmp_path / "undisturbed", None)
    report = killing["kill_at_random"](tmp_path / "killed", 10, 0)
    assert undisturbed.wait(timeout=900) == 0
    assert report["code"] == 0, (tmp_path / "killed" / "log").read_text()
    assert report["kills"] == 10
    assert report["most steps lost"] <= killing["EVERY"]
    undisturbed_files, killed_files = (
        sorted((tmp_path / which / "out").glob("*/seed-0/model.safetensors")) for which in ("undisturbed", "killed")
    )
    assert len(undisturbed_files) == len(killed_files) == 2
    for one, other in zip(undisturbed_files, killed_files, strict=True):
        assert one.read_bytes() == other.read_bytes(), one
    records = [
        [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in path.read_text().splitlines()]
        for which in ("undisturbed", "killed")
        for path in sorted((tmp_path / which / "out").glob("*/seed-0/metrics.jsonl"))
    ]
    assert records[:2] == records[2:]
