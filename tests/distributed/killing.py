"""Runs `goes_on.py` under torchrun's elastic restart and kills its processes by SIGKILL at random moments.

    python killing.py FOLDER KILLS SEED STEPS

prints what that cost: steps lost and seconds until the next step, kill by kill.
"""

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

SCRIPT = Path(__file__).with_name("goes_on.py")
PROCESSES, EVERY = 3, 5


def torchrun(folder: Path, steps: int, processes: int = PROCESSES) -> "subprocess.Popen[str]":
    folder.mkdir(parents=True, exist_ok=True)
    words = ["--standalone", "--nproc-per-node", str(processes), "--max-restarts", "1000", "--monitor-interval", "0.2"]
    command = [sys.executable, "-m", "torch.distributed.run", *words, str(SCRIPT), str(folder), str(steps), str(EVERY)]
    log = (folder / "log").open("a")
    return subprocess.Popen(command, stdout=log, stderr=log, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def journal(folder: Path, rank: int) -> list[list[str]]:
    path = folder / f"journal-{rank}"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [line.split() for line in lines if line.endswith("\n")]


def of(folder: Path, rank: int, what: str) -> list[tuple[float, int, int]]:
    """When, which process, which step."""
    return [(float(line[0]), int(line[1]), int(line[3])) for line in journal(folder, rank) if line[2] == what]


def wait_for_progress(folder: Path, since: float, run: "subprocess.Popen[str]") -> bool:
    """Until process 0 has taken a step after ``since``; False if the run is over."""
    while run.poll() is None:
        took = of(folder, 0, "took")
        if took and took[-1][0] > since:
            return True
        time.sleep(0.05)
    return False


def kill_at_random(folder: Path, kills: int, seed: int, steps: int) -> dict[str, object]:
    """Kill one random process at a random moment after progress, so many times; then let the run end."""
    random_numbers = random.Random(seed)
    run = torchrun(folder, steps)
    events: list[dict[str, float]] = []
    since = 0.0
    while len(events) < kills and wait_for_progress(folder, since, run):
        time.sleep(random_numbers.expovariate(1 / 0.5))
        victim = random_numbers.randrange(PROCESSES)
        begun = of(folder, victim, "begins")
        if run.poll() is not None or not begun:
            break
        since = time.time()
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
        begin = next(((when, step) for when, _, step in begins if when > event["at"]), None)
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
    print(json.dumps(kill_at_random(folder, kills, seed, steps=int(sys.argv[4])), indent=1))
