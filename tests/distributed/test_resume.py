"""Saved by some processes in the middle of a round, gone on with by another number of them: the same weights as without a stop."""

from pathlib import Path

import pytest

from reference.processes import fork_on_each

SCRIPT = Path(__file__).with_name("resume_on_each.py")
PROCESSES = 1 + 3 + 1 + 4 + 1 + 2 + 2 + 4 + 2 + 2


def test_any_number_of_processes_goes_on(tmp_path):
    output = fork_on_each(SCRIPT, "main", 4, str(tmp_path), timeout=500)
    assert output.count(" among ") == PROCESSES


@pytest.mark.distributed
def test_any_number_of_processes_goes_on_whatever_is_kept(tmp_path):
    output = fork_on_each(SCRIPT, "main", 4, str(tmp_path), "every", timeout=900)
    assert output.count(" among ") == PROCESSES
