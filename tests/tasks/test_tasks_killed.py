"""Runs of every task that die by SIGKILL and go on leave the same bytes as runs that did not die; images are fine-tuned here."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lookaround.tasks.vision.data import load_data
from lookaround.tasks.vision.networks import Architecture, save_network

METHODS = ["adamw", "lookahead:k=2", "lookaround:k=2", "ema", "sam:lr=0.01", "swa", "logit-ensemble"]
TUNED = ["lookahead:k=2", "lookaround:k=2", "swa:norm_stats=reestimate", "greedy-soup"]
DEATHS = 2  # of each run, as killed_at_steps.py says
ARITHMETIC = ["zero", "one", "two", "three", "four", "five"]


def sentence(i: int, words: list[str]) -> str:
    return f"{words[i % 6]} and {words[(i // 6) % 6]} is {words[(i + i // 6) % 6]}"


def language(folder: Path) -> list[str]:
    for part, lines in (("train", range(40)), ("valid", range(40, 44)), ("test", range(44, 50))):
        (folder / f"{part}.txt").write_text("".join(f"{sentence(i, ARITHMETIC)}\n" for i in lines))
    options = "--width 8 --layers 1 --window 4 --dropout 0.3 --weight-drop 0.2 --all batch=4"
    differing = "--tokens subwords --vocabulary 280 --differences windows word-dropout bpe-dropout"
    return ["--task", "language", "--root", str(folder), *options.split(), *differing.split()]


def translation(folder: Path) -> list[str]:
    german = ["null", "eins", "zwei", "drei", "vier", "fünf"]
    for part, lines in (("train", range(40)), ("val", range(40, 44)), ("test", range(44, 50))):
        for ending, words in (("en", ARITHMETIC), ("de", german)):
            (folder / f"{part}.{ending}").write_text("".join(f"{sentence(i, words)}\n" for i in lines))
    options = "--source en --target de --width 8 --layers 1 --heads 2 --hidden 8 --vocabulary 280 --all batch=90"
    differing = "--differences order word-dropout bpe-dropout"
    return ["--task", "translation", "--root", str(folder), *options.split(), *differing.split()]


def fine_tuning(folder: Path) -> list[str]:
    """Of digits, from a network of eight classes: a new head, the first layers frozen, the others at a tenth of the rate."""
    data = load_data("digits")
    network = Architecture.for_data("small-cnn", 4, replace(data, classes=data.classes[:8]))
    torch.manual_seed(1)
    save_network(folder / "eight.safetensors", network.build(), network, {})
    options = "--train-images 60 --test-images 20 --width 4 --frozen 0 1 --body-rate 0.1 --all batch=8"
    return ["--init-from", str(folder / "eight.safetensors"), *options.split()]


def contents(run: Path) -> dict:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    result = json.loads((run / "result.json").read_text())
    for record in (*records, result):
        del record["seconds"]
    networks = {path.name: path.read_bytes() for path in sorted(run.glob("*.safetensors"))}
    return {"records": records, "result": result, "networks": networks}


@pytest.mark.parametrize(("task", "methods"), [(language, METHODS), (translation, METHODS), (fine_tuning, TUNED)])
def test_a_run_killed_again_and_again_ends_as_if_nothing_had_happened(task, methods, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    words = ["train", *task(data), "--epochs", "2", "--checkpoint-every", "2", "--threads", "1", "--methods", *methods]
    script = Path(__file__).with_name("killed_at_steps.py")
    done = subprocess.run(
        [sys.executable, str(script), str(whole), str(killed), *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{DEATHS * len(methods)} 0", done.stdout + done.stderr
    runs = sorted(path.parent.relative_to(whole) for path in whole.glob("*/seed-0/result.json"))
    assert len(runs) == len(methods)
    for run in runs:
        assert contents(killed / run) == contents(whole / run), run


def test_what_an_lstm_carries_is_in_the_checkpoint(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    from lookaround.cli import main

    words = [*language(data), "--epochs", "1", "--methods", "lookaround:k=2", "--out", str(tmp_path / "out")]
    assert main(["train", *words]) == 0
    (checkpoint,) = (tmp_path / "out").glob("*/seed-0/checkpoint.pt")
    state = torch.load(checkpoint, weights_only=True)
    assert any(name.endswith("_extra_state") for name in state["model"])
