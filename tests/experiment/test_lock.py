"""One process at a time in a folder, with real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from lookaround.experiment import UsageError
from lookaround.experiment.lock import LOCK, holder, locked

HOLD = "import sys, time; from pathlib import Path; from lookaround.experiment.lock import locked\n"
HOLD += "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


@pytest.fixture
def another(tmp_path):
    """A real process that holds the folder's lock."""
    program = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "held\n"
        yield child
        child.kill()


def test_a_second_process_is_refused_and_told_who_is_inside(tmp_path, another):
    with (
        pytest.raises(UsageError, match=rf"being trained in by process {another.pid} on .*, since 20.*; wait for it"),
        locked(tmp_path),
    ):
        pytest.fail("it was let in")
    assert holder(tmp_path).startswith(f"process {another.pid} on ")
    another.communicate("")
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert holder(tmp_path) is None


def test_what_a_killed_process_left_is_no_lock(tmp_path, another):
    another.send_signal(signal.SIGKILL)
    another.wait()
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == another.pid
    assert holder(tmp_path) is None
    with locked(tmp_path):
        pass


def test_a_second_lock_in_one_process_is_refused_too(tmp_path):
    with locked(tmp_path), pytest.raises(UsageError, match=f"process {os.getpid()} on"), locked(tmp_path):
        pytest.fail("it was let in")
