"""Real processes, really killed, and twelve that write one target at once: a soup is whole or not there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

COOKING = Path(__file__).with_name("cooking.py")


def run(what, folder, kind):
    done = subprocess.run(
        [sys.executable, COOKING, what, folder, kind],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return int(done.stdout.split()[-1])


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_of_two_hundred_soups_killed_in_the_middle_none_is_torn(tmp_path, kind):
    assert run("kills", tmp_path, kind) == 100


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_twelve_processes_that_write_one_target_leave_one_whole_soup(tmp_path, kind):
    run("writers", tmp_path, kind)
