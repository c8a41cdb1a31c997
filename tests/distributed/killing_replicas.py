"""Three replica groups: one after the other is killed by SIGKILL at a random moment and started again. Needs torchft.

    python killing_replicas.py FOLDER KILLS SEED

prints what that cost: seconds until the others' next average, averages taken again, steps of the killed that are lost, seconds until the
killed one's next average. At the end the weights of all averages are compared between those who were there.
"""

import json
import random
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path

import torch
from replica_on_each import start
from replica_reference import K

NAMES, SLOW, ENDLESS = "abc", 20, 100_000


def lines(folder: Path, name: str) -> list[list[str]]:
    path = folder / f"journal-{name}"
    whole = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [line.split(maxsplit=3) for line in whole if line.endswith("\n")]


def when(folder: Path, name: str, what: str, since: float = 0.0) -> list[float]:
    return [float(line[0]) for line in lines(folder, name) if line[2] == what and float(line[0]) > since]


def wait_for_averages(folder: Path, names: str, since: float, how_many: int = 1) -> dict[str, float]:
    """When each of them had so many averages behind it."""
    deadline = time.monotonic() + 120
    while any(len(when(folder, name, "average", since)) < how_many for name in names):
        assert time.monotonic() < deadline, "no average within two minutes"
        time.sleep(0.02)
    return {name: when(folder, name, "average", since)[how_many - 1] for name in names}


def kill_one(folder: Path, running: dict, address: str, randoms: random.Random, heartbeat: float) -> dict[str, float]:
    time.sleep(randoms.uniform(0, 3 * K * SLOW / 1000))
    victim = randoms.choice(NAMES)
    others = NAMES.replace(victim, "")
    at = time.time()
    running[victim].kill()
    running[victim].join()
    lost = steps_since_its_last_average(folder, victim)
    on = max(wait_for_averages(folder, others, at).values())
    back = time.time()
    running[victim] = start(folder, victim, address, seed=7, rounds=ENDLESS, slow=SLOW, outer=1)
    returned = wait_for_averages(folder, victim, back)[victim]
    wait_for_averages(folder, NAMES, returned, 2)
    again = sum(
        "taken again" in line[3]
        for name in others
        for line in lines(folder, name)
        if float(line[0]) > at and line[2] == "warning"
    )
    return {"go on": on - at, "taken again": again, "steps lost": lost, "back": returned - back}


def steps_since_its_last_average(folder: Path, name: str) -> int:
    kinds = [line[2] for line in lines(folder, name) if line[2] in ("begins", "turn", "average")]
    return next(i for i, kind in enumerate(reversed(kinds)) if kind != "turn")


def rounds_missed(folder: Path) -> int:
    """By processes that were alive: averages that others have committed without them."""
    missed = 0
    for name in NAMES:
        lives: dict[str, list[int]] = {}
        for line in lines(folder, name):
            if line[2] == "average":
                lives.setdefault(line[1], []).append(int(line[3]))
        missed += sum(b - a - 1 for of in lives.values() for a, b in pairwise(of))
    return missed


def compare(folder: Path) -> int:
    """How many files of averages are the same, bit for bit, as those of the others."""
    states = {}
    for path in folder.glob("?-*.pt"):
        states.setdefault(path.stem.partition("-")[2], []).append(torch.load(path))
    for number, of in states.items():
        for state in of[1:]:
            assert all(torch.equal(state[key], of[0][key]) for key in state), number
    return sum(map(len, states.values()))


def main(folder: Path, kills: int, seed: int, heartbeat: float = 1.0) -> dict[str, object]:
    from torchft.coordination import LighthouseServer

    folder.mkdir(parents=True, exist_ok=True)
    server = LighthouseServer(
        bind="[::]:0",
        min_replicas=2,
        join_timeout_ms=120_000,
        quorum_tick_ms=20,
        heartbeat_timeout_ms=int(heartbeat * 1000),
    )
    address, randoms = server.address(), random.Random(seed)
    words = {"rounds": ENDLESS, "slow": SLOW, "outer": 1, "together": 3}
    running = {name: start(folder, name, address, seed=i, **words) for i, name in enumerate(NAMES)}
    wait_for_averages(folder, NAMES, 0, 3)
    events = [kill_one(folder, running, address, randoms, heartbeat) for _ in range(kills)]
    for process in running.values():
        process.kill()
        process.join()
    server.shutdown()
    found = {key: [event[key] for event in events] for key in events[0]}
    report = {
        key: f"median {statistics.median(of):.2f}, {min(of):.2f} to {max(of):.2f}, sum {sum(of):.0f}"
        for key, of in found.items()
    }
    return {
        "kills": kills,
        **report,
        "rounds missed by the living": rounds_missed(folder),
        "averages compared": compare(folder),
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])), indent=1))
