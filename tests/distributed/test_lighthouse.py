"""The lighthouse itself is killed by SIGKILL while replica groups train."""

import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from replica_on_each import start
from test_torchft import averages, wait_until

pytestmark = pytest.mark.ft
pytest.importorskip("torchft")


@contextmanager
def lighthouse_at(port):
    """A process of its own."""
    words = ["--bind", f"[::]:{port}", "--min_replicas", "2", "--join_timeout_ms", "120000", "--quorum_tick_ms", "20"]
    command = [str(Path(sys.executable).with_name("torchft_lighthouse")), *words, "--heartbeat_timeout_ms", "3000"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_when_the_lighthouse_dies_every_replica_group_says_so_within_the_limit(tmp_path):
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    with lighthouse_at(port) as lighthouse:
        address, words = f"http://localhost:{port}", {"together": 2, "waits": 12, "limit": 5}
        running = {name: start(tmp_path, name, address, i, **words) for i, name in enumerate("ab")}
        wait_until(lambda: all(len(averages(tmp_path, name)) == 4 for name in "ab"), running)
        lighthouse.send_signal(signal.SIGKILL)
        lighthouse.wait()
    (tmp_path / "back").touch()
    for name, process in running.items():
        process.join(120)
        said = (tmp_path / f"log-{name}").read_text()
        assert process.exitcode == 1, said[-3000:]
        assert "LostReplicasError" in said
