"""The same quality in less time: real digits to one held-out loss, by one process, by DDP on two, and by Lookaround on two.

Every way takes 64 samples a step: one process all of them, DDP's two processes 32 each of one minibatch, Lookaround's two branches 32 each
of their own. Each way has the same rates to choose from, and is shown at its best. Evaluation is off the clock.
"""

import json
import sys
from contextlib import AbstractContextManager
from statistics import median
from typing import Any

from benchmarks.harness import machine
from benchmarks.network import Host, hosts_with_a_link, missing, one_host, start_on

WIRES = ("lookaround", "lookaround-bfloat16", "lookaround-int8")
RATES, SEEDS, TARGET = (0.05, 0.1, 0.2), (0, 1, 2, 3, 4), 0.1


def trained(hosts: list[Host], way: str) -> list[dict[str, Any]]:
    """One line for each rate and seed."""
    words = ["--way", way, "--target", str(TARGET), "--rates", *map(str, RATES), "--seeds", *map(str, SEEDS)]
    processes = start_on(hosts, [sys.executable, "-m", "benchmarks.same_loss_worker", *words])
    outputs = [process.communicate(timeout=3600)[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError("\n".join(outputs))
    return [json.loads(line) for line in outputs[0].splitlines() if line.startswith("{")]


def best(runs: list[dict[str, Any]]) -> tuple[float, dict[str, float]] | None:
    """The rate at which all seeds reach the loss and the median step is lowest, with the medians over seeds."""
    found = {}
    for lr in RATES:
        of = [run for run in runs if run["lr"] == lr]
        if all(run["seconds"] is not None for run in of):
            found[lr] = {key: median(run[key] for run in of) for key in ("seconds", "step", "samples", "bytes")}
            found[lr] |= {"least": min(run["seconds"] for run in of), "most": max(run["seconds"] for run in of)}
    return min(found.items(), key=lambda item: item[1]["step"]) if found else None


def compare(title: str, networks: dict[str, AbstractContextManager[list[Host]]], counters: int) -> None:
    """One table."""
    print(f"\n{title}: held-out loss {TARGET}, medians over {len(SEEDS)} seeds")
    for way, network in networks.items():
        with network as hosts:
            chosen = best(trained(hosts, way))
        if chosen is None:
            print(f"  {way:<19} at none of the rates {RATES} do all seeds reach it")
            continue
        lr, row = chosen
        sent = row["bytes"] / (counters if len(hosts) > 1 else 1) if len(hosts) > 1 else 0.0
        number = f"{len(hosts)} process{'es' if len(hosts) > 1 else ''}"
        seconds = f"{row['seconds']:8.2f} s ({row['least']:.2f} to {row['most']:.2f})"
        print(
            f"  {way:<19} {number:<12} {seconds}   {row['step']:5.0f} steps   {sent / 1e6:9.2f} MB sent a process   lr {lr}"
        )


def main() -> None:
    """Print the tables."""
    print(f"\n== the same held-out loss, one thread a process ({machine()})")
    compare("over loopback", {"sgd": one_host(1), "ddp": one_host(2), **{way: one_host(2) for way in WIRES}}, 2)
    if missing():
        print(f"\ntwo hosts: left out, as {missing()}")
    else:
        linked = {"sgd": one_host(1), **{way: hosts_with_a_link(100) for way in ("ddp", *WIRES)}}
        compare("two hosts, 100 Mbit/s", linked, 1)


if __name__ == "__main__":
    main()
