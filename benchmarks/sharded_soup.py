"""The mean of two sharded folders of 2 GB, against mergekit's linear merge: time, processor time, memory, and the same numbers.

The folders are those of a Llama of 1.0 billion bfloat16 parameters with drawn weights, in five files and an index. Each candidate
runs in a process of its own, so that its peak memory can be told; the candidates take turns. mergekit is run by the interpreter that
MERGEKIT_PYTHON names; without it there is nothing to compare with.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import load_file, save_file

from benchmarks.harness import machine, peak_memory
from lookaround.averaging import soup_files

HIDDEN, INNER, LAYERS, WORDS, SHARDS, TURNS = 2048, 5632, 18, 32_000, 5, 3
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": WORDS,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
MERGE = """
merge_method: linear
dtype: float32
out_dtype: bfloat16
models:
  - {{model: {0}/a, parameters: {{weight: 1.0}}}}
  - {{model: {0}/b, parameters: {{weight: 1.0}}}}
"""
_MERGEKIT = """
import json, sys, time, yaml
from pathlib import Path
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
def memory(field):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field))
folder = Path(sys.argv[1])
before, start, busy = memory("VmRSS"), time.perf_counter(), time.process_time()
run_merge(MergeConfiguration.model_validate(yaml.safe_load((folder / "merge.yml").read_text())), str(folder / "merged"),
          options=MergeOptions(quiet=True, copy_tokenizer=False))
print(json.dumps([time.perf_counter() - start, time.process_time() - busy, memory("VmHWM") - before]))
"""


def shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """The names and shapes of a Llama's tensors."""
    yield "model.embed_tokens.weight", (WORDS, HIDDEN)
    for layer in range(LAYERS):
        for name in "qkvo":
            yield f"model.layers.{layer}.self_attn.{name}_proj.weight", (HIDDEN, HIDDEN)
        for name, shape in (("gate", (INNER, HIDDEN)), ("up", (INNER, HIDDEN)), ("down", (HIDDEN, INNER))):
            yield f"model.layers.{layer}.mlp.{name}_proj.weight", shape
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"model.layers.{layer}.{name}.weight", (HIDDEN,)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (WORDS, HIDDEN)


def write_folder(folder: Path, seed: int) -> int:
    """One model. Returns the bytes of its tensors."""
    folder.mkdir()
    generator, named = torch.Generator().manual_seed(seed), list(shapes())
    weight_map, total = {}, 0
    for index in range(SHARDS):
        part = named[index * len(named) // SHARDS : (index + 1) * len(named) // SHARDS]
        file = f"model-{index + 1:05}-of-{SHARDS:05}.safetensors"
        tensors = {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in part}
        save_file(tensors, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    index_text = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(index_text)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return total


def tensors_of(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of a folder, file by file."""
    for file in sorted(folder.glob("*.safetensors")):
        yield from load_file(file).items()


def compare(first: Path, second: Path) -> tuple[int, float]:
    """The number of elements that differ between two folders, and the largest difference in units of the last place."""
    others = {name: file for file in second.glob("*.safetensors") for name in load_file(file)}
    differing, largest = 0, 0.0
    for name, ours in tensors_of(first):
        theirs = load_file(others.pop(name))[name]
        apart = (ours.view(torch.int16).int() - theirs.view(torch.int16).int()).abs()
        differing, largest = differing + int(apart.count_nonzero()), max(largest, float(apart.max()))
    assert not others, f"missing here: {list(others)[:3]}"
    return differing, largest


def measure_here(name: str, folder: Path) -> None:
    """The child process: time one candidate and print what :func:`run_alone` reads."""
    before, start, busy = peak_memory(), time.perf_counter(), time.process_time()
    soup_files(folder / "soup", [folder / "a", folder / "b"], hashes=name.endswith("hashes"))
    print(json.dumps([time.perf_counter() - start, time.process_time() - busy, peak_memory() - before]))


def run_alone(name: str, folder: Path) -> list[float]:
    """Seconds, processor seconds and bytes of additional peak memory of one candidate in a process of its own."""
    if name.startswith("mergekit"):
        shutil.rmtree(folder / "merged", ignore_errors=True)
        command = [os.environ["MERGEKIT_PYTHON"], "-c", _MERGEKIT, str(folder)]
    else:
        shutil.rmtree(folder / "soup", ignore_errors=True)
        command = [sys.executable, "-m", "benchmarks.sharded_soup", name, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Print medians, and whether the numbers are the same."""
    if not os.environ.get("MERGEKIT_PYTHON"):
        print("\nmean of two sharded folders: left out, as MERGEKIT_PYTHON names no interpreter that has mergekit")
        return
    names = ["mergekit, linear", "lookaround", "lookaround, with hashes"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        size = write_folder(folder / "a", 0)
        write_folder(folder / "b", 1)
        (folder / "merge.yml").write_text(MERGE.format(folder))
        found: dict[str, list[list[float]]] = {name: [] for name in names}
        for _ in range(TURNS):
            for name in names:
                found[name].append(run_alone(name, folder))
        differing, largest = compare(folder / "soup", folder / "merged")
    print(f"\nmean of two folders of {size / 1e9:.2f} GB in {SHARDS} files each ({machine()})")
    print(f"  {'':<26}{'seconds':>9}{'processor s':>13}{'peak MB':>9}")
    for name, results in found.items():
        wall, busy, memory = (median(column) for column in zip(*results, strict=True))
        print(f"  {name:<26}{wall:>9.2f}{busy:>13.2f}{memory / 1e6:>9.0f}")
    print(f"  elements that differ: {differing}, by at most {largest:.0f} units of the last place")


if __name__ == "__main__":
    measure_here(sys.argv[1], Path(sys.argv[2])) if len(sys.argv) == 3 else main()
