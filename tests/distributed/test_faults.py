"""A training that is killed again and again under torchrun: it goes on by itself, and ends as if nothing had happened."""

import runpy
from pathlib import Path

import pytest
import torch

killing = runpy.run_path(str(Path(__file__).with_name("killing.py")))
STEPS = 160


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
