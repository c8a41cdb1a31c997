"""The same quality in less time: real digits to one held-out loss, by one process, by DDP on two, and by Lookaround on two.

Every way takes 64 samples a step: one process all of them, DDP's two processes 32 each of one minibatch, Lookaround's two branches 32 each
of their own. They take turns, seed by seed, in the same two processes. Each way has the same rates to choose from, and is shown at its
best. Evaluation is off the clock. A small network costs more than half for half of a minibatch; a deep one half.
"""

import json
import sys
from contextlib import AbstractContextManager
from statistics import median
from typing import Any

from benchmarks.harness import machine
from benchmarks.network import Host, hosts_with_a_link, missing, one_host, start_on

WAYS = ("sgd", "ddp", "lookaround", "lookaround-int8")
RATES, TARGET, SEEDS = {"small": (0.05, 0.1), "deep": (0.01, 0.02)}, 0.1, (0, 1, 2, 3, 4)

Runs = list[dict[str, Any]]


def trained(hosts: list[Host], network: str, rates: tuple[float, ...], ways: tuple[str, ...] = WAYS) -> Runs:
    """What `same_loss_worker` says of each way, rate and seed."""
    words = ["--network", network, "--target", str(TARGET), "--rates", *map(str, rates), "--seeds", *map(str, SEEDS)]
    command = [sys.executable, "-m", "benchmarks.same_loss_worker", *words, "--ways", *ways]
    processes = start_on(hosts, command)
    outputs = [process.communicate(timeout=3600)[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError("\n".join(outputs))
    return [json.loads(line) for line in outputs[0].splitlines() if line.startswith("{")]


def best(runs: Runs) -> tuple[float, dict[str, float]] | None:
    """The rate at which all seeds reach the loss and the median step is lowest, with the medians over seeds."""
    found = {}
    for lr in sorted({run["lr"] for run in runs}):
        of = [run for run in runs if run["lr"] == lr]
        if all(run["seconds"] is not None for run in of):
            found[lr] = {key: median(run[key] for run in of) for key in ("seconds", "processor", "step", "bytes")}
            found[lr] |= {"least": min(run["seconds"] for run in of), "most": max(run["seconds"] for run in of)}
            found[lr]["each"] = median(run["seconds"] / run["step"] for run in of)
            found[lr]["busy"] = median(run["processor"] / run["step"] for run in of)
    return min(found.items(), key=lambda item: item[1]["step"]) if found else None


def show(title: str, runs: Runs, counters: int) -> None:
    """A table; ``counters`` processes share the counter of bytes."""
    print(f"\n{title}, medians over {len(SEEDS)} seeds")
    for way in dict.fromkeys(run["way"] for run in runs):
        chosen = best([run for run in runs if run["way"] == way])
        if chosen is None:
            print(f"  {way:<19} at none of the rates do all seeds reach it")
            continue
        lr, row = chosen
        sent = 0.0 if way.startswith("sgd") else row["bytes"] / counters
        seconds = f"{row['seconds']:7.2f} s ({row['least']:.2f} to {row['most']:.2f})"
        each = f"{row['step']:5.0f} steps of {row['each'] * 1e3:6.1f} ms ({row['busy'] * 1e3:.1f} of processor time)"
        print(f"  {way:<19} {seconds:<27} {each}   {sent / 1e6:8.2f} MB sent a process   lr {lr}")


def compare(title: str, network: AbstractContextManager[list[Host]], counters: int) -> None:
    """Both networks' tables."""
    with network as hosts:
        for which, rates in RATES.items():
            show(f"{title}, {which} network, held-out loss {TARGET}", trained(hosts, which, rates), counters)


def main() -> None:
    """Print the tables."""
    print(f"\n== the same held-out loss, a thread a process but where named ({machine()})")
    compare("over loopback", one_host(2), 2)
    if missing():
        print(f"\ntwo hosts: left out, as {missing()}")
    else:
        compare("two hosts, 100 Mbit/s", hosts_with_a_link(100), 1)


if __name__ == "__main__":
    main()
