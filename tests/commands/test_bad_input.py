"""A hundred bad inputs to the commands that train: one line each, a status that is not 0, and nothing in the folder changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from lookaround.cli import main

# One line an input; {a} is a folder with a finished experiment, {file} a file, {empty} an empty folder, {full} one of other things.
INPUTS = """
train --out {full}
train --out {file}
train --out {file}/inside
train --out {a}
train --out {a} --resume --epochs 3
train --out {a} --resume --methods sgd
train --out {a} --resume --seeds 1
train --out {a} --resume --copies independent
train --out {a} --resume --task chess
train --out {a} --add-seeds 0
train --out {a} --add-seeds 1 1
train --out {a} --add-seeds one
train --out {a} --add-seeds -x
train --out {a} --add-methods sgd:batch=20
train --out {a} --add-methods sgd:batch=20,lr=0.1
train --out {a} --add-methods sgd:batch=20,k=1
train --out {a} --add-methods nosuch
train --out {a} --add-methods swad
train --out {a} --add-methods greedy-soup
train --out {a} --add-methods ema:decay=1
train --out {a} --add-methods ema:decay=-1
train --out {a} --add-methods ema:every=0
train --out {a} --add-methods tail:fraction=0
train --out {a} --add-methods tail:fraction=2
train --out {a} --add-methods lawa:window=0
train --out {a} --add-methods power-ema:width=0
train --out {a} --add-methods power-ema:width=1
train --out {a} --add-methods wsm:shape=round
train --out {a} --add-methods swa:swa_cycle=99999
train --out {a} --add-methods swa:swa_lr=-1
train --out {a} --add-methods dswa:swa_start=2
train --out {a} --add-methods snapshot-ensemble:cycles=99999
train --out {a} --add-methods lookahead:k=0
train --out {a} --add-methods lookahead:alpha=-1
train --out {a} --add-methods lookahead:alpha=most
train --out {a} --add-methods lookahead:inner=nosuch
train --out {a} --add-methods lookahead:inner=sparseadam
train --out {a} --add-methods lookahead:inner=adamw,momentum=0.9
train --out {a} --add-methods lookahead:inner=adamw,betas=1/2
train --out {a} --add-methods lookahead:inner=adamw,betas=0.9
train --out {a} --add-methods lookahead:inner_state=reset,inner=lbfgs
train --out {a} --add-methods lookaround:start=2
train --out {a} --add-methods lookaround:branches=0
train --out {a} --add-methods lookaround:norm_stats=guess
train --out {a} --add-methods lookaround:batch=1/3
train --out {a} --add-methods lookaround:batch=0
train --out {a} --add-methods sam:rho=-1
train --out {a} --add-methods sam:adaptive=perhaps
train --out {a} --add-methods sgd:lr=-1
train --out {a} --add-methods sgd:lr=nan
train --out {a} --add-methods sgd:lr=0,1
train --out {a} --add-methods sgd:lr:0.1
train --out {a} --add-methods sgd:
train --out {a} --add-methods :lr=1
train --out {a} --add-methods sgd:momentum=-0.5
train --out {a} --add-methods sgd:nesterov=true,momentum=0
train --out {a} --add-methods sgd:weight_decay=-1
train --out {a} --add-methods muon:momentum=2
train --out {a} --add-methods adafactor:eps=-1/2
train --out {a} --add-methods sgd:schedule=sine
train --out {a} --add-methods sgd:schedule=multi-step
train --out {a} --add-methods sgd:schedule=multi-step,milestones=0.8/0.2
train --out {a} --add-methods sgd:schedule=multi-step,milestones=2
train --out {a} --add-methods sgd:warmup=-1
train --out {a} --add-methods sgd:cooldown=3
train --out {a} --add-methods sam+lookaround
train --out {a} --add-methods ema+ema
train --out {a} --add-methods sgd+
train --out {empty}/new --add-seeds 3
train --out {empty}/new --data nosuch
train --out {empty}/new --data cifar10 --root {empty}
train --out {empty}/new --data folder --root {file}
train --out {empty}/new --data folder
train --out {empty}/new --data digits --image-size 16
train --out {empty}/new --train-images 0
train --out {empty}/new --train-images 99999
train --out {empty}/new --test-images -1
train --out {empty}/new --model nosuch
train --out {empty}/new --model resnet18 --width 3
train --out {empty}/new --width 0
train --out {empty}/new --model resnet18 --train-images 50 --methods sgd --epochs 0
train --out {empty}/new --branches 0
train --out {empty}/new --branches 9
train --out {empty}/new --copies borrowed
train --out {empty}/new --augmentations blur
train --out {empty}/new --augmentations shift none
train --out {empty}/new --crop-padding -1
train --out {empty}/new --label-smoothing 1.5
train --out {empty}/new --epochs many
train --out {empty}/new --budget 0
train --out {empty}/new --budget 5
train --out {empty}/new --evaluations 0
train --out {empty}/new --score train
train --out {empty}/new --hold-out 0
train --out {empty}/new --hold-out 1
train --out {empty}/new --hold-out 0.00001
train --out {empty}/new --device tpu
train --out {empty}/new --device cuda:77
train --out {empty}/new --threads 0
train --out {empty}/new --checkpoint-every 0
train --out {empty}/new --methods
train --out {empty}/new --methods sgd sgd
train --out {empty}/new --methods sgd --all k=1
train --out {empty}/new --methods sgd --all nonsense
train --out {empty}/new --seeds
train --out {empty}/new --seeds 1 1
train --out {empty}/new --config {empty}/none.toml
train --out {empty}/new --config {file}
train --out {empty}/new --config {a}
train --out {empty}/new --nosuch 3
train --out
train surplus
tune --out {a}
tune --out {empty}/new --grid
tune --out {empty}/new --grid lr
tune --out {empty}/new --grid lr=0.1,0.1
tune --out {empty}/new --grid rho=0.1,0.2
tune --out {empty}/new --grid lr=fast,0.1
tune --out {empty}/new --grid inner_state=x2,maintain --methods lookahead
tune --out {empty}/new --trials 0
tune --out {empty}/new --trials 5
tune --out {empty}/new --strategy guess
tune --out {empty}/new --by bleu
tune --out {empty}/new --search-seeds 0 --seeds 0
tune --out {empty}/new --hold-out 2
tune --out {empty}/new --budget 3
methods nosuch
methods sgd:k=1
methods --all
status
status {empty}
status {file}
status /no/such/folder
status {a} {a}
""".strip().splitlines()


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("finished")
    words = ["--train-images", "60", "--test-images", "30", "--width", "4", "--epochs", "1", "--device", "cpu"]
    words += ["--copies", "shared", "--methods", "sgd:batch=20", "--out", str(out)]
    assert main(["train", *words]) == 0
    (
        out / "sgd,batch=20" / "seed-0" / "result.json"
    ).unlink()  # unfinished, so that going on without --resume is refused
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_there_are_more_than_a_hundred():
    assert len(set(INPUTS)) == len(INPUTS) > 100


@pytest.mark.parametrize("line", INPUTS)
def test_it_is_refused_in_one_line_and_nothing_is_lost(finished, tmp_path, capsys, line):
    names = {"a": tmp_path / "a", "empty": tmp_path / "empty", "full": tmp_path / "full", "file": tmp_path / "file"}
    shutil.copytree(finished, names["a"])
    names["empty"].mkdir()
    names["full"].mkdir()
    (names["full"] / "thesis.txt").write_text("years of work")
    names["file"].write_text("a file")
    before = contents(tmp_path)
    os.environ.pop("COLUMNS", None)
    try:
        status = main([word.format(**names) for word in line.split(" ")])
    except SystemExit as stopped:
        status = stopped.code
    said = capsys.readouterr().err
    assert status in (1, 2)
    assert said.startswith("lookaround: ")
    assert len(said.splitlines()) == 1, said
    assert len(said) > len("lookaround: ") + 10
    assert contents(tmp_path) == before
