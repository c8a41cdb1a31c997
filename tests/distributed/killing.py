"""Runs `goes_on.py` or `trains_on.py` under torchrun's elastic restart and kills its processes by SIGKILL at random moments.

    python killing.py FOLDER KILLS SEED STEPS
    python killing.py FOLDER KILLS SEED

prints what that cost: steps lost and seconds until the next step, kill by kill.
"""

import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

PROCESSES, EVERY = 3, 5


def command(steps: int | None) -> tuple[str, list[str]]:
    """The script, and its words after the folder: a loop of so many steps, or ``lookaround train``."""
    name, words = ("trains_on.py", []) if steps is None else ("goes_on.py", [str(steps)])
    return str(Path(__file__).with_name(name)), [*words, str(EVERY)]


def torchrun(folder: Path, steps: int | None, processes: int = PROCESSES) -> "subprocess.Popen[str]":
    folder.mkdir(parents=True, exist_ok=True)
    words = ["--standalone", "--nproc-per-node", str(processes), "--max-restarts", "1000", "--monitor-interval", "0.2"]
    script, more = command(steps)
    whole = [sys.executable, "-m", "torch.distributed.run", *words, script, str(folder), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("a") as log:
        return subprocess.Popen(whole, stdout=log, stderr=log, text=True, env=environment)


def journal(folder: Path, rank: int) -> list[list[str]]:
    path = folder / f"journal-{rank}"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [line.split() for line in lines if line.endswith("\n")]


def of(folder: Path, rank: int, what: str) -> list[tuple[float, int, int]]:
    """When, which process, which step."""
    return [(float(line[0]), int(line[1]), int(line[3])) for line in journal(folder, rank) if line[2] == what]


def wait_for_progress(folder: Path, known: set[int], run: "subprocess.Popen[str]") -> bool:
    """Until a process 0 that is none of the known ones has taken a step; False if the run is over."""
    while run.poll() is None:
        took = of(folder, 0, "took")
        if took and took[-1][1] not in known:
            return True
        time.sleep(0.05)
    return False


def wait_at_random(folder: Path, seconds: float, latest: float, run: "subprocess.Popen[str]") -> None:
    """So many seconds, or until a step that leaves enough of the run for the kills that are still to come, however fast its steps are."""
    end = time.time() + seconds
    while time.time() < end and run.poll() is None and of(folder, 0, "took")[-1][2] < latest:
        time.sleep(0.02)


def kill_at_random(folder: Path, kills: int, seed: int, steps: int | None = None) -> dict[str, object]:
    """Kill one random process at a random moment after progress, so many times; then let the run end."""
    random_numbers = random.Random(seed)
    run = torchrun(folder, steps)
    events: list[dict[str, float]] = []
    known: set[int] = set()
    while len(events) < kills and wait_for_progress(folder, known, run):
        latest = math.inf if steps is None else steps * (len(events) + 1) / (kills + 1)
        wait_at_random(folder, random_numbers.expovariate(1 / 0.5), latest, run)
        victim = random_numbers.randrange(PROCESSES)
        begun = of(folder, victim, "begins")
        if run.poll() is not None or not begun:
            break
        since, known = time.time(), {pid for _, pid, _ in of(folder, 0, "begins")}
        try:
            os.kill(begun[-1][1], signal.SIGKILL)
        except ProcessLookupError:  # it has ended by itself, since another one did
            continue
        events.append({"at": since, "rank": victim, "step": max(s for _, _, s in of(folder, 0, "took"))})
    code = run.wait(timeout=600)
    return {"code": code, "kills": len(events), **costs(folder, events)}


def costs(folder: Path, events: list[dict[str, float]]) -> dict[str, object]:
    took, begins = of(folder, 0, "took"), of(folder, 0, "begins")
    lost, seconds = [], []
    for event in events:
        known = {pid for when, pid, _ in begins if when < event["at"]}
        begin = next(((when, step) for when, pid, step in begins if pid not in known), None)
        if begin:
            before = [s for when, _, s in took if when < begin[0]]
            lost.append(before[-1] - begin[1] if before else 0)
            seconds.append(next((when for when, _, _ in took if when > begin[0]), begin[0]) - event["at"])
    return {
        "steps lost": lost,
        "seconds": [round(s, 2) for s in seconds],
        "median seconds": round(statistics.median(seconds), 2) if seconds else None,
        "most steps lost": max(lost, default=0),
    }


if __name__ == "__main__":
    folder, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    print(json.dumps(kill_at_random(folder, kills, seed, *map(int, sys.argv[4:5] or [])), indent=1))
