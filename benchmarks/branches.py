"""Lookaround over two processes against DDP over the same two for the same samples: over loopback, and over a 100 Mbit/s link.

Two hosts are two network namespaces with a token bucket on the link between them; that needs root and iproute2, and is left out with a
word where they are not there. Bytes are counted at the interfaces.
"""

import json
import sys
from contextlib import AbstractContextManager

from benchmarks.branches_worker import ROUNDS
from benchmarks.harness import machine
from benchmarks.network import Host, hosts_with_a_link, missing, one_host, start_on

KS = (1, 5, 20)
LINK = 100.0


def run(hosts: list[Host], size: str, ks: tuple[int, ...], repeats: int) -> dict[str, dict[str, dict[str, float]]]:
    """What `branches_worker` measures on these hosts."""
    words = ["--size", size, "--repeats", str(repeats), "--ks", *map(str, ks)]
    processes = start_on(hosts, [sys.executable, "-m", "benchmarks.branches_worker", *words])
    outputs = [process.communicate(timeout=1800)[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError("\n".join(outputs))
    answer: dict[str, dict[str, dict[str, float]]] = json.loads(outputs[0].splitlines()[-1])
    return answer


def constants(results: dict[str, dict[str, float]]) -> tuple[float, float]:
    """t₀ and t₁ of an average's time, t₀ + t₁ N, from those of two vectors that are not as long as the model."""
    names = [name for name in results if name.startswith("average of ")]
    (short, quick), (long, slow) = ((int(name.split()[-1]), results.pop(name)["seconds"]) for name in names)
    each = (slow - quick) / (long - short)
    return quick - each * short, each


def formula(alone: float, average: tuple[float, float], numbers: int, k: int, overlap: int = 0) -> float:
    """Seconds a step: what a step alone takes, and a k-th of an average, or of what is left of it after the steps it is under way for.

    Of a turn's rounds the last waits for all of its average.
    """
    whole = average[0] + average[1] * numbers
    left = max(0.0, whole - overlap * alone)
    return alone + ((left * (ROUNDS - 1) + whole) / ROUNDS if overlap else whole) / k


def physics(numbers: int, megabits: float) -> float:
    """Seconds that an average's numbers take on a full link at least: as many as the model's, in Ethernet frames, sent by either of two."""
    return numbers * 4 * (1514 / 1448) / (megabits * 1e6 / 8)


def show(
    title: str, measured: dict[str, dict[str, dict[str, float]]], processes_at_a_counter: int, megabits: float
) -> None:
    """A table of seconds and bytes per step, of how much faster than DDP, and of how near to the formula."""
    results, numbers = measured["results"], int(measured["parameters"])  # type: ignore[call-overload]
    average = constants(results)
    alone, ddp = results["alone"]["seconds"], results["ddp"]["seconds"]
    print(
        f"\n{title}: {numbers / 1e6:.2f} M parameters; an average takes {average[0] * 1e3:.2f} ms + {average[1] * 1e9:.2f} ms a million",
        end="",
    )
    print(f", the link alone {physics(10**6, megabits) * 1e3:.2f} ms a million" if megabits else "")
    for name, row in results.items():
        sent = row["bytes"] / processes_at_a_counter
        line = f"  {name:<9} {row['seconds'] * 1e3:9.2f} ms a step   {sent / 1e6:8.3f} MB a step   {ddp / row['seconds']:6.2f} x DDP"
        if name.startswith("k="):
            counts = [int(part[2:]) for part in name.split()]
            line += f"   {row['seconds'] / formula(alone, average, numbers, *counts):5.2f} x the formula"
        print(line)


def measure(
    title: str, network: AbstractContextManager[list[Host]], counters: int, megabits: float, repeats: int
) -> None:
    """One network, both sizes."""
    with network as hosts:
        for size in ("small", "large"):
            show(f"{title}, {size}", run(hosts, size, KS, repeats), counters, megabits)


def main() -> None:
    """Print the tables."""
    print(f"\n== branches over 2 processes, one thread each ({machine()})")
    measure("over loopback", one_host(2), 2, 0.0, repeats=7)
    if missing():
        print(f"\nover a link of {LINK:g} Mbit/s: left out, as {missing()}")
    else:
        measure(f"two hosts, {LINK:g} Mbit/s", hosts_with_a_link(LINK), 1, LINK, repeats=3)


if __name__ == "__main__":
    main()
