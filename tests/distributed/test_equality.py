"""One process, d processes and d × m give the same weights: 20 rounds, in the middle of them too, with every buffer."""

from pathlib import Path

import pytest

from reference.processes import fork_on_each

SCRIPT = Path(__file__).with_name("equality_on_each.py")


@pytest.mark.parametrize("check", ["check_rows", "check_every_outer", "check_a_branch_that_diverges"])
def test_the_same_weights_on_one_to_four_processes(check):
    assert fork_on_each(SCRIPT, "main", 4, check).count("equal among") == 10


def test_the_same_weights_with_data_parallelism_inside_a_branch():
    assert fork_on_each(SCRIPT, "main", 4, "check_ddp_inside_a_branch").count("equal among") == 10


@pytest.mark.distributed
def test_the_same_weights_with_sharded_weights_inside_a_branch():
    assert fork_on_each(SCRIPT, "main", 4, "check_fsdp_inside_a_branch").count("equal among") == 10
