"""A replica group of `test_torchft.py` and `killing_replicas.py`: trains, notes what it does, and dies or fails where it is told to.

Further words of `start`: ``dies`` before that step by SIGKILL; ``waits`` before that step until a file ``back`` is there; ``fails`` with an
error at the commit of that number, from 0; ``least`` replica groups; ``together`` before the start until so many have begun; ``limit`` in
seconds; ``slow``, milliseconds of each step; ``outer=1`` for DiLoCo's outer optimizer; ``rounds``.
"""

import multiprocessing
import os
import signal
import time
import warnings
from datetime import timedelta
from pathlib import Path

import torch
from replica_reference import D, K, network, place, sgd, turn

from lookaround import Lookaround
from lookaround.distributed import join_replicas


def main(folder: Path, name: str, seed: int, rounds: int = 7, **words: int) -> None:
    warnings.filterwarnings("ignore", message="The given buffer is not writable", category=UserWarning)  # torchft's own
    warnings.showwarning = lambda message, *_, **__: note(folder, name, "warning", message)
    model = network(seed)
    manager = join_replicas(name, least=words.get("least", 1), timeout=timedelta(seconds=20))
    limit = timedelta(seconds=words.get("limit", 60))
    optimizer = Lookaround(
        sgd(model.parameters()),
        D,
        K,
        model=model,
        replicas=manager,
        time_limit=limit,
        **settings(words.get("outer", 0)),
    )
    fail_at(manager, words.get("fails", -1))
    note(folder, name, "begins", os.getpid())
    wait_for_all(folder, words.get("together", 1))
    while manager.current_step() <= rounds:
        for branch in optimizer.around():
            number, within = place(optimizer)
            step = number * K + within
            hold_on(folder, step, words)
            turn(model, optimizer, branch, step)
            note(folder, name, "turn", step, branch)
        if not place(optimizer)[1]:
            save(model.state_dict(), folder / f"{name}-{place(optimizer)[0]}.pt")
            note(folder, name, "average", place(optimizer)[0])
    manager.shutdown()


def save(state: dict, path: Path) -> None:
    """Whole or not there, also where this process is killed meanwhile."""
    torch.save(state, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def settings(outer: int) -> dict:
    return {"outer": lambda p: torch.optim.SGD(p, lr=0.7, momentum=0.9, nesterov=True)} if outer else {}


def wait_for_all(folder: Path, size: int) -> None:
    """Until so many have begun, and the lighthouse has heard of them: it asks nobody to wait for those it does not know."""
    while len([*folder.glob("journal-*")]) < size:
        time.sleep(0.02)
    time.sleep(0.5 if size > 1 else 0)


def hold_on(folder: Path, step: int, words: dict[str, int]) -> None:
    if step == words.get("dies"):
        os.kill(os.getpid(), signal.SIGKILL)
    while step == words.get("waits") and not (folder / "back").exists():
        time.sleep(0.02)
    time.sleep(words.get("slow", 0) / 1000)


def fail_at(manager, number: int) -> None:
    """Have the commit of a number, from 0, fail here, after all has been sent."""
    commit, commits = manager.should_commit, []

    def should_commit(*of) -> bool:
        commits.append(True)
        if len(commits) - 1 == number:
            manager.report_error(RuntimeError("told to fail"))
        return commit(*of)

    manager.should_commit = should_commit


def note(folder: Path, name: str, *what) -> None:
    with (folder / f"journal-{name}").open("a") as journal:
        journal.write(" ".join(map(str, (time.time(), os.getpid(), *what))) + "\n")


# A server imports everything once and forks: a replica group is there at once, and comes back at once.
forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(["torchft", "replica_on_each"])


def start(folder: Path, name: str, address: str, seed: int = 0, **words: int):
    here, path = str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")
    if here not in path.split(os.pathsep):  # the server has no other way to find this file
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, path]))
    process = forks.Process(target=alone, args=(folder, name, address, seed, words), daemon=True)
    process.start()
    return process


def alone(folder: Path, name: str, address: str, seed: int, words: dict[str, int]) -> None:
    with (folder / f"log-{name}").open("a") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    os.environ["TORCHFT_LIGHTHOUSE"] = address
    torch.set_num_threads(1)
    main(folder, name, seed, **words)
