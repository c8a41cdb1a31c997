"""A uniform soup of ten 400 MB files, against plain loops, mergekit's linear merge, and reading the files and writing one.

Each candidate runs in a process of its own, so that its peak memory can be told; the candidates take turns. Beside the time on the
wall stands the processors' time, which a busy machine changes less; the soup shares its work among two cores or more. mergekit pins other
versions of its dependencies, so it is run by the interpreter that MERGEKIT_PYTHON names, and left out if it names none.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import load_file, save_file

from benchmarks.harness import machine, table
from lookaround.averaging import soup_files
from lookaround.averaging.soups.cook import THREADS
from lookaround.averaging.soups.hashing import new_hash

FILES, LAYERS, WIDTH, TURNS = 10, 12, 1024, 5
FLOOR, READ = "floor: read ten files, write one", "read ten files"

_MERGEKIT = """
import json, sys, time
from mergekit.scripts.merge_raw_pytorch import main
def memory(field):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field))
before = memory("VmRSS")
start, busy = time.perf_counter(), time.process_time()
main([sys.argv[1] + "/merge.yml", sys.argv[1] + "/merged", "--quiet"], standalone_mode=False)
seconds, busy = time.perf_counter() - start, time.process_time() - busy
print(json.dumps([seconds, busy, memory("VmHWM") - before]))
"""


def memory(field: str) -> int:
    """This process's own memory in bytes: ``VmRSS`` now, ``VmHWM`` at its peak (``ru_maxrss`` would begin with the parent's)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def write_models(folder: Path) -> int:
    """Ten state dicts of a small transformer, as safetensors and as ``torch.save`` files. Returns the bytes of one."""
    shapes = {"q": (1, 1), "k": (1, 1), "v": (1, 1), "o": (1, 1), "up": (2, 1), "down": (1, 2)}
    for index in range(FILES):
        generator = torch.Generator().manual_seed(index)
        state = {"embed": torch.randn(6 * WIDTH, WIDTH, generator=generator)}
        for layer in range(LAYERS):
            for name, (rows, columns) in shapes.items():
                state[f"layers.{layer}.{name}"] = torch.randn(rows * WIDTH, columns * WIDTH, generator=generator)
            state[f"layers.{layer}.norm"] = torch.randn(WIDTH, generator=generator)
        save_file(state, folder / f"{index}.safetensors")
        torch.save(state, folder / f"{index}.pt")
    lines = [f"  - {{model: {folder}/{i}.safetensors, parameters: {{weight: 1.0}}}}" for i in range(FILES)]
    (folder / "merge.yml").write_text("\n".join(["merge_method: linear", "dtype: float32", "models:", *lines]))
    return (folder / "0.safetensors").stat().st_size


def paths(folder: Path, kind: str) -> list[Path]:
    """The ten files of one kind."""
    return [folder / f"{i}.{kind}" for i in range(FILES)]


def plain_loop(folder: Path, kind: str, load: Callable[[Path], dict[str, torch.Tensor]]) -> None:
    """What people write: load, add in float32, divide, save."""
    total: dict[str, torch.Tensor] = {}
    for path in paths(folder, kind):
        state = load(path)
        for name, value in state.items():
            if name in total:
                total[name] += value.float()
            else:
                total[name] = value.float().clone()
    save_file({name: value.div_(FILES) for name, value in total.items()}, folder / "out.safetensors")


def read_all(folder: Path) -> bytearray:
    """The bytes of all files through one buffer."""
    buffer = bytearray(2**20)
    for path in paths(folder, "safetensors"):
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return buffer


def hash_all(folder: Path) -> list[str]:
    """The least that hashes can cost: the bytes of all files through a buffer and the hash, by as many threads as a soup has."""

    def digest(path: Path) -> str:
        hashed, buffer = new_hash(), memoryview(bytearray(2**20))
        with open(path, "rb", buffering=0) as file:
            while count := file.readinto(buffer):
                hashed.update(buffer[:count])
        return hashed.hexdigest()

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(digest, paths(folder, "safetensors")))


def read_and_write(folder: Path) -> None:
    """The floor: the bytes of all files through one buffer, and those of one file out again."""
    buffer = read_all(folder)
    with open(folder / "out.safetensors", "wb", buffering=0) as out:
        for _ in range((folder / "0.safetensors").stat().st_size // len(buffer)):
            out.write(buffer)


CANDIDATES: dict[str, Callable[[Path], object]] = {
    FLOOR: read_and_write,
    READ: read_all,
    "read and hash ten files, by threads": hash_all,
    "lookaround": lambda f: soup_files(f / "out.safetensors", paths(f, "safetensors"), hashes=False),
    "lookaround, with hashes of the inputs": lambda f: soup_files(f / "out.safetensors", paths(f, "safetensors")),
    "loop over safetensors.torch.load_file": lambda f: plain_loop(f, "safetensors", load_file),
    "loop over torch.load": lambda f: plain_loop(f, "pt", lambda p: torch.load(p, weights_only=True)),
}
MERGEKIT = "mergekit, linear"


def run_alone(name: str, folder: Path) -> list[float]:
    """Seconds, processor seconds and bytes of additional peak memory of one candidate in a process of its own."""
    if name == MERGEKIT:
        command = [os.environ["MERGEKIT_PYTHON"], "-c", _MERGEKIT, str(folder)]
    else:
        command = [sys.executable, "-m", "benchmarks.soup", name, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure_here(name: str, folder: Path) -> None:
    """The child process: time one candidate and print what :func:`run_alone` reads."""
    before = memory("VmRSS")
    start, busy = time.perf_counter(), time.process_time()
    CANDIDATES[name](folder)
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    print(json.dumps([seconds, busy, memory("VmHWM") - before]))


def main() -> None:
    """Print medians as ratios to the floor, and peak memory in models."""
    names = [*CANDIDATES, *([MERGEKIT] if os.environ.get("MERGEKIT_PYTHON") else [])]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        size = write_models(folder)
        found: dict[str, list[list[float]]] = {name: [] for name in names}
        for _ in range(TURNS):
            for name in names:
                found[name].append(run_alone(name, folder))
    columns = {name: list(zip(*results, strict=True)) for name, results in found.items()}
    for index, kind in enumerate(("on the wall", "of processors")):
        rows = [(name, median(values[index])) for name, values in columns.items()]
        table(f"uniform soup of {FILES} files of {size / 1e6:.0f} MB, time {kind} ({machine()})", rows, FLOOR)
    print("  peak memory beyond the imports, in models:")
    for name, values in columns.items():
        print(f"    {name:<40} {max(values[2]) / size:6.2f}")
    if MERGEKIT not in found:
        print("  mergekit was left out: MERGEKIT_PYTHON names no interpreter that has it")


if __name__ == "__main__":
    measure_here(sys.argv[1], Path(sys.argv[2])) if len(sys.argv) == 3 else main()
