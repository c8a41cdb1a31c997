"""Real processes for what happens between them."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = str(Path(__file__).parents[1])


def run_on_each(script, size: int, *words: str) -> None:
    """Run ``script RANK SIZE WORDS…`` in ``size`` processes at once; what they print is the failure's message."""
    path = os.pathsep.join(filter(None, [TESTS, os.environ.get("PYTHONPATH")]))
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(size), *words],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * size, "\n".join(outputs)


def fork_on_each(script, name: str, size: int, *words: str, killed: int = 0, timeout: float = 300) -> str:
    """Run ``NAME(rank, size, store, *words)`` of a script in ``size`` forked processes at once; what they print is returned.

    All have to end well, but for as many as are to be ``killed``.
    """
    path = os.pathsep.join(filter(None, [TESTS, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("forked.py")), str(size), str(script), name, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "TORCH_CPP_LOG_LEVEL": "ERROR"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == killed, done.stdout
    return done.stdout
