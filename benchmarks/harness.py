"""Timing on a machine that is shared and noisy: candidates take turns, medians are compared, ratios are reported."""

import gc
import platform
import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch


def interleave(
    candidates: dict[str, Callable[[], object]],
    repeats: int,
    *,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """The median time of each candidate in seconds, over ``repeats`` turns in which all of them run once: see `in_turns`."""
    return medians(in_turns(candidates, repeats, warmup=warmup, clock=clock))


def in_turns(
    candidates: dict[str, Callable[[], object]],
    repeats: int,
    *,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """The times of each candidate in seconds, over ``repeats`` turns in which all of them run once.

    ``clock`` may be `time.thread_time` for what runs in one thread: other programs on the machine do not add to it.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    gc.disable()
    try:
        for turn in range(warmup + repeats):
            for name, run in _rotated(candidates, turn):
                begin = clock()
                run()
                if turn >= warmup:
                    times[name].append(clock() - begin)
    finally:
        gc.enable()
    return times


def medians(times: dict[str, list[float]]) -> dict[str, float]:
    """The median of each candidate's times."""
    return {name: median(values) for name, values in times.items()}


def in_pairs(times: dict[str, list[float]], reference: str) -> dict[str, float]:
    """The median of each candidate's ratios to the reference in the same turn: what slows a whole turn down is not in it."""
    base = times[reference]
    return {name: median(a / b for a, b in zip(values, base, strict=True)) for name, values in times.items()}


def _rotated(candidates: dict[str, Callable[[], object]], turn: int) -> list[tuple[str, Callable[[], object]]]:
    """The candidates in an order that changes from turn to turn, so that none always follows the same other one's caches."""
    order = list(candidates.items())
    random.Random(turn).shuffle(order)
    return order


def peak_memory() -> int:
    """The peak resident memory of this process so far, in bytes (Linux; `getrusage` would count the parent's before exec)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def machine() -> str:
    """What the numbers were measured on, for the line above a table."""
    return (
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def table(title: str, rows: list[tuple[str, float]], reference: str, ratios: dict[str, float] | None = None) -> None:
    """Print times as milliseconds and as ratios to one of them, or with ``ratios`` that are known better."""
    base = dict(rows)[reference]
    print(f"\n{title}")
    for name, seconds in rows:
        ratio = ratios[name] if ratios else seconds / base
        print(f"  {name:<42} {seconds * 1e3:9.3f} ms   {ratio:6.2f} x")
