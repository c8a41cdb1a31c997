"""Contract 5: FSDP2 on real processes, whose sharded weights follow the trajectory of the whole ones."""

from pathlib import Path

import pytest

from reference.processes import run_on_each


@pytest.mark.parametrize("size", [1, 2])
def test_sharded_weights_follow_the_whole_ones(size, tmp_path):
    run_on_each(Path(__file__).with_name("sharded.py"), size, str(tmp_path / "store"))
