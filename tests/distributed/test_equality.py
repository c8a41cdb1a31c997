"""One process, d processes and d × m give the same weights: 20 rounds, in the middle of them too, with every buffer."""

from pathlib import Path

import pytest

from reference.processes import fork_on_each

SCRIPT = Path(__file__).with_name("equality_on_each.py")


def test_the_same_weights_on_one_to_four_processes():
    output = fork_on_each(SCRIPT, "main", 4)
    assert output.count("check_rows among") == 1 + 2 + 3 + 4
    assert output.count("check_ddp_inside_a_branch among") == 2 + 4
    assert output.count("check_overlap among") == 2 + 3
    assert output.count("check_every_outer among") == output.count("check_a_branch_that_diverges among") == 3


@pytest.mark.distributed
def test_every_check_on_one_to_four_processes_with_sharded_weights_inside_a_branch_too():
    output = fork_on_each(SCRIPT, "main", 4, "all", timeout=900)
    assert output.count(" among ") == 6 * (1 + 2 + 3 + 4)
