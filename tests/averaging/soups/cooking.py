"""Makes soups in processes that are killed, or that write one target at once.

Children are forked from a process that has imported everything.
"""

import os
import random
import signal
import sys
import threading
import warnings
from pathlib import Path

import torch
from safetensors.torch import load, save_file

from lookaround import files
from lookaround.averaging import soup_files
from lookaround.averaging.soups import cook
from lookaround.averaging.soups.folders import folder_parts
from lookaround.averaging.soups.outputs import is_soup
from lookaround.files import is_partial

# Several blocks of several tensors, in a second or less for all the kills.
TENSORS, LENGTH, BLOCK = 4, 50_000, 2**13
SHARD = 2 * LENGTH * 4
KILLS, WRITERS, TIMES = 100, 12, 8


def child(run):
    """Start ``run`` in a child process."""
    pid = os.fork()
    if pid:
        return pid
    try:
        run()
        os._exit(0)
    except BaseException as error:
        print(f"in a child: {error!r}", flush=True)
        os._exit(1)


def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def ingredients(folder):
    for value in (0.0, 1.0):
        save_file({f"w{i}": torch.full((LENGTH,), value) for i in range(TENSORS)}, folder / f"{value}.safetensors")
    return [folder / "0.0.safetensors", folder / "1.0.safetensors"]


def value_of(out):
    """The one number that a whole soup holds everywhere; None if there is no soup.

    Each file is opened once: safetensors' ``load_file`` opens it by name twice, for its header and for its tensors, and so would
    mix two whole files if the one were replaced by the other in between.
    """
    if not out.exists():
        return None
    assert is_soup(out), out
    parts = list(folder_parts(out)) if out.is_dir() else [out]
    state = {name: tensor for file in parts for name, tensor in load(file.read_bytes()).items()}
    assert sorted(state) == [f"w{i}" for i in range(TENSORS)], sorted(state)
    values = {float(edge) for tensor in state.values() for edge in tensor.aminmax()}
    assert len(values) == 1, values
    return values.pop()


def die_at(moment):
    """Arrange for this process to be killed: at the n-th progress, or before or after the soup is put in its place."""
    if isinstance(moment, int):
        count = iter(range(10**9))
        return lambda done, total: os.kill(os.getpid(), signal.SIGKILL) if next(count) == moment else None
    when, module, name = moment
    real = getattr(module, name)

    def deadly(*args, **kwargs):
        if when == "after":
            real(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(module, name, deadly)
    return None


def kills(folder, to_folder):
    """Kill soups in the middle, a hundred times; each time the old soup or the new one stands at its place."""
    given, out, rng = ingredients(folder), folder / ("soup" if to_folder else "soup.safetensors"), random.Random(0)
    size = {"shard_size": SHARD} if to_folder else {}
    placing = (files, "_exchange") if to_folder else (os, "replace")
    soup_files(out, given, weights=[1, 0], **size)
    written = {0.0}
    for index in range(KILLS):
        share = (1 + index % 7) / 8
        moment = (rng.choice(["before", "after"]), *placing) if index % 4 == 0 else rng.randrange(24)
        status = ended(
            child(lambda s=share, m=moment: soup_files(out, given, weights=[1 - s, s], progress=die_at(m), **size))
        )
        assert status == -signal.SIGKILL, (status, moment)
        written.add(share)
        assert value_of(out) in written
        left = [path for path in folder.iterdir() if path not in (*given, out)]
        assert len(left) <= 1, left
        assert all(map(is_partial, left)), left
    assert ended(child(lambda: soup_files(out, given, weights=[0, 1], **size))) == 0
    assert value_of(out) == 1.0
    assert not [path for path in folder.iterdir() if is_partial(path)]
    print(KILLS)


def writers(folder, to_folder):
    """Twelve processes write one target; whoever reads meanwhile finds one whole soup."""
    given, out = ingredients(folder), folder / ("soup" if to_folder else "soup.safetensors")
    size = {"shard_size": SHARD} if to_folder else {}
    shares = [(1 + rank) / 16 for rank in range(WRITERS)]

    def write(share):
        for _ in range(TIMES):
            soup_files(out, given, weights=[1 - share, share], **size)

    pids = [child(lambda s=share: write(s)) for share in shares]
    statuses, seen = [], []
    waiting = threading.Thread(target=lambda: statuses.extend(map(ended, pids)))
    waiting.start()
    while waiting.is_alive():
        if not to_folder:
            seen.append(value_of(out))
    waiting.join()
    assert statuses == [0] * WRITERS
    assert set(seen) <= {None, *shares}
    assert value_of(out) in shares
    assert sorted(folder.iterdir()) == sorted([*given, out])
    print(len(set(seen)))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    cook._BLOCK = BLOCK
    {"kills": kills, "writers": writers}[sys.argv[1]](Path(sys.argv[2]), sys.argv[3] == "folder")
