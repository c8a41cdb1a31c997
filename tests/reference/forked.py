"""Processes that share one import of torch: this program imports it, forks, and each child runs the same checks with its own rank.

    python forked.py SIZE FILE NAME [WORDS…]

Calls the function NAME of FILE as ``function(rank, size, store, *words)`` in SIZE processes, where the store is this program's own, as
torchrun's agent keeps it. What a child prints is shown; its traceback too. Exits with the number of children that were killed, or with
100 if one failed. Children that outlive one that did not end well by long are killed.
"""

import importlib.util
import os
import signal
import sys
import time
import traceback
from pathlib import Path

# The first step of an optimizer imports the compiler, and that takes longer than most checks: once, and not in every child.
import torch._dynamo  # noqa: F401
import torch.distributed as dist

import lookaround  # noqa: F401

_PATIENCE = 30.0


def load(path: str):
    sys.path.insert(0, str(Path(path).parent))  # what scripts of one folder share
    spec = importlib.util.spec_from_file_location("checks", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["checks"] = module
    spec.loader.exec_module(module)
    return module


def child(rank: int, size: int, pipe: int, check, words: list[str]) -> int:
    store = dist.TCPStore("127.0.0.1", int(os.read(pipe, 16)), is_master=False)
    try:
        check(rank, size, store, *words)
    except BaseException:
        print(f"--- process {rank} of {size}", file=sys.stderr)
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def main() -> int:
    size, path, name, *words = sys.argv[1:]
    check = getattr(load(path), name)
    pipes = [os.pipe() for _ in range(int(size))]
    children = {}
    for rank, (reading, _) in enumerate(pipes):
        pid = os.fork()
        if not pid:
            os._exit(child(rank, int(size), reading, check, words))
        children[pid] = rank
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for _, writing in pipes:
        os.write(writing, str(store.port).encode())
    return reap(children)


def reap(children: dict[int, int]) -> int:
    killed, failed, end = 0, False, None
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            rank, code = children.pop(pid), os.waitstatus_to_exitcode(status)
            if code:
                print(f"--- process {rank} ended with {code}", file=sys.stderr)
                end = end or time.monotonic() + _PATIENCE
            killed, failed = killed + (code == -signal.SIGKILL), failed or code > 0
        elif end and time.monotonic() > end:
            for pid in children:
                os.kill(pid, signal.SIGKILL)
            failed, end = True, float("inf")
        else:
            time.sleep(0.01)
    return 100 if failed else killed


if __name__ == "__main__":
    sys.exit(main())
