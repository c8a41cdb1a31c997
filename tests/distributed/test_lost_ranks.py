"""A process that is slow or gone: an error within the limit that names it, on all the others, and never a silent hang."""

import subprocess
import sys
from pathlib import Path

import pytest

from reference.processes import fork_on_each

SCRIPT = Path(__file__).with_name("lost_ranks_on_each.py")


# How many processes of each scenario have to end well: those that were neither killed nor killed themselves.
ENDS = {
    "never_comes 0": 3,
    "never_comes 2": 3,
    "column_never_comes ": 4,
    "dies_in_the_middle 0": 2,
    "dies_in_the_middle 1": 2,
    "dies_under_way 1": 2,
    "keeper_of_the_store_dies ": 2,
}


def test_who_is_lost_is_named_by_all_others():
    """Of 22 processes, of which four are killed by SIGKILL."""
    output = fork_on_each(SCRIPT, "main", 22, killed=4)
    assert {scenario: output.count(f"{scenario}: process ") for scenario in ENDS} == ENDS


@pytest.mark.distributed
def test_a_program_that_ends_does_not_wait_for_who_never_comes(tmp_path):
    """The limit is ten minutes."""
    script = str(SCRIPT.with_name("ends_under_way.py"))
    done = subprocess.run(
        [sys.executable, script, str(tmp_path / "store")], stdout=subprocess.PIPE, text=True, timeout=500
    )
    assert (done.returncode, done.stdout) == (0, "ends\n")
