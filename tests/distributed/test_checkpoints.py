"""Checkpoints by several processes: whole or not there, for any number of processes afterwards."""

from pathlib import Path

import pytest
import torch

from lookaround.distributed import Checkpoints
from reference.processes import fork_on_each

SCRIPT = Path(__file__).with_name("checkpoints_on_each.py")


def test_on_any_number_of_processes_and_whole_or_not_there(tmp_path):
    fork_on_each(SCRIPT, "main", 4, str(tmp_path), killed=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-11", "step-12", "step-9"]


def test_a_time_gone_back_from_does_not_return(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (10, 20):
        checkpoints.save(step, {"weight": torch.full((1,), float(step))})
    (tmp_path / "step-20" / ".metadata").unlink()
    (tmp_path / "step-30").mkdir()
    checkpoints.save(15, {"weight": torch.full((1,), 15.0)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-10", "step-15"]
    state = {"weight": torch.zeros(1)}
    assert checkpoints.load(state) == 15
    assert state["weight"].item() == 15


def test_nothing_to_load(tmp_path):
    state = {"weight": torch.ones(1)}
    assert Checkpoints(tmp_path / "none").load(state) is None
    assert state["weight"].item() == 1
    with pytest.raises(ValueError, match="keep has to be at least 1, got 0"):
        Checkpoints(tmp_path, keep=0)
