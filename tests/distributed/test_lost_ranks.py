"""A process that is slow or gone: an error within the limit that names it, on all the others, and never a silent hang."""

from pathlib import Path

import pytest

from reference.processes import fork_on_each

SCRIPT = Path(__file__).with_name("lost_ranks_on_each.py")


@pytest.mark.parametrize("missing", ["0", "2"])
def test_who_never_comes_is_named(missing):
    fork_on_each(SCRIPT, "never_comes", 3, missing)


def test_who_never_comes_is_named_by_its_own_column():
    fork_on_each(SCRIPT, "column_never_comes", 4)


@pytest.mark.parametrize("dying", ["0", "1"])
def test_who_is_killed_in_the_middle_of_an_average_is_named(dying):
    output = fork_on_each(SCRIPT, "dies_in_the_middle", 3, dying, killed=1)
    assert f"process {dying} ended with -9" in output


def test_a_key_value_store_that_is_gone_is_named():
    fork_on_each(SCRIPT, "keeper_of_the_store_dies", 3, killed=1)
