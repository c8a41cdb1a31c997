"""A process that is slow or gone: an error within the limit that names it, on all the others, and never a silent hang."""

from pathlib import Path

import pytest

from reference.processes import fork_on_each

SCRIPT = Path(__file__).with_name("lost_ranks_on_each.py")


@pytest.fixture(scope="module")
def output():
    """Of 22 processes, of which four are killed by SIGKILL."""
    return fork_on_each(SCRIPT, "main", 22, killed=4)


@pytest.mark.parametrize(
    ("scenario", "ends"),
    [
        ("never_comes 0", 3),
        ("never_comes 2", 3),
        ("column_never_comes ", 4),
        ("dies_in_the_middle 0", 2),
        ("dies_in_the_middle 1", 2),
        ("dies_under_way 1", 2),
        ("keeper_of_the_store_dies ", 2),
    ],
)
def test_who_is_lost_is_named_by_all_others(scenario, ends, output):
    assert output.count(f"{scenario}: process ") == ends
