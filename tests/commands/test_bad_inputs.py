"""More than a hundred bad inputs: each is answered by one line and a status that is not 0, and nothing is lost or left behind."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from torch import zeros

from lookaround.cli import main
from reference.experiments import IDENTITY, write_experiment

RUN = "{sgd}"
PLANE = ["landscape", "plane"]
LINE = ["landscape", "line", RUN, "{lookahead}"]
TRAJECTORY = ["landscape", "trajectory", "{lookaround}"]
ADVICE = ["theory", "advice", RUN]

COMPARE = [
    *(
        [],
        ["{nowhere}"],
        ["{file}"],
        ["{empty}"],
        [RUN],
        ["{good}", "{good}"],
        ["{good}", "{link}"],
        ["{good}", "{nowhere}"],
    ),
    *(
        ["{good}", "{other}"],
        ["{metrics}", "{hand}"],
        ["{unfinished}"],
        ["{diverged}"],
        ["{fifo}"],
        [""],
        ["{good}/experiment.json"],
    ),
    *(["{hand}", "--baseline", "nobody"], ["{hand}", "--baseline", ""], ["{hand}", "--baseline", "gone"]),
    *(["{hand}", "--metrics", "bleu"], ["{hand}", "--metrics", ""], ["{hand}", "--metrics", "TOP1"]),
    *(["{hand}", "--confidence", value] for value in ("0", "1", "95", "-0.5", "nan", "inf", "high", "")),
    *(["{hand}", "--correction", value] for value in ("tukey", "", "HOLM")),
    *(["{hand}", "--out", value] for value in ("{file}", "{hand}", "{file}/below", "{fifo}")),
    *(["{hand}", "--outs", "x"], ["{hand}", "--out"], ["{hand}", "-x"]),
    *(
        [f"{{broken}}/{name}"]
        for name in ("empty", "list", "binary", "deep", "identity", "metrics", "nan", "text", "result", "record")
    ),
    *([f"{{broken}}/{name}"] for name in ("seed", "unit", "no-metric", "huge", "folder")),
]
LANDSCAPE = [
    *(["landscape"], ["landscape", "volume"], ["landscape", ""], ["landscape", "--out", "x"]),
    *([*PLANE], [*PLANE, RUN, RUN], [*PLANE, "{nowhere}"], [*PLANE, "{file}"], [*PLANE, "{empty}"], [*PLANE, "{good}"]),
    *([*PLANE, "{tensors}"], [*PLANE, "{fifo}"], [*PLANE, ""], [*PLANE, RUN, RUN, RUN]),
    *([*PLANE, RUN, "--points", value] for value in ("1", "0", "-3", "2.5", "many")),
    *([*PLANE, RUN, "--extent", value] for value in ("0", "-1", "nan", "inf", "wide")),
    *([*PLANE, RUN, "--margin", "-1"], [*PLANE, RUN, "--margin", "nan"], [*PLANE, RUN, "--seed", "x"]),
    *(
        [*PLANE, RUN, "--quantity", "beauty"],
        [*PLANE, RUN, "--split", "validation"],
        [*PLANE, RUN, "--norm-stats", "x"],
    ),
    *([*PLANE, RUN, "--images", value] for value in ("0", "-1", "1000000", "x")),
    *([*PLANE, RUN, "--norm-images", value] for value in ("0", "-1", "1000000")),
    *([*PLANE, RUN, "--batch-size", "0"], [*PLANE, RUN, "--threads", "0"], [*PLANE, RUN, "--device", "tpu"]),
    *([*PLANE, RUN, "--device", "cuda:99"], [*PLANE, RUN, "--data", "mnist"], [*PLANE, RUN, "--data", "cifar10"]),
    *([*PLANE, RUN, "--data", "folder", "--root", "{nowhere}"], [*PLANE, RUN, "--data", "folder", "--root", "{file}"]),
    *([*PLANE, RUN, "--out", "{file}"], [*PLANE, RUN, "--out", "{file}/below"], [*PLANE, RUN, "--no-such"]),
    *([*LINE[:-1]], [*LINE, RUN], [*LINE[:-1], RUN], [*LINE[:-1], "{tensors}"], [*LINE[:-1], "{nowhere}"]),
    *([*LINE, "--points", value] for value in ("1", "0", "x")),
    *([*LINE, "--beyond", value] for value in ("-1", "nan", "inf")),
    *([*LINE, "--out", "{file}"], [*LINE, "--images", "0"]),
    *(TRAJECTORY[:2], [*TRAJECTORY, RUN], [*TRAJECTORY[:2], "{nowhere}"], [*TRAJECTORY[:2], "{tensors}"]),
    *([*TRAJECTORY, "--rounds", value] for value in ("0", "-1", "x")),
    *([*TRAJECTORY, "--lr", value] for value in ("nan", "inf", "-1", "1e9", "x")),
    *([*TRAJECTORY, "--k", "0"], [*TRAJECTORY, "--method", "sgd"], [*TRAJECTORY, "--method", "lookaround:k=0"]),
    *([*TRAJECTORY, "--method", "lookaround:q=1"], [*TRAJECTORY, "--method", ""], [*TRAJECTORY, "--start", "middle"]),
    *([*TRAJECTORY, "--barrier-points", "-1"], [*TRAJECTORY, "--out", "{file}"]),
]
THEORY = [
    *(["theory"], ["theory", "lookahead-99"], ["theory", ""], ["theory", "list", "all"], ["theory", "--out", "x"]),
    *(["theory", "lookahead-4", "--out", "{file}"], ["theory", "lookahead-4", "--out", "{file}/below"]),
    *(["theory", "lookahead-4", "nothing"], ["theory", "lookahead-4", "--no-such"], ["theory", "lookahead-4", "--out"]),
    *(ADVICE[:2], [*ADVICE[:2], "{nowhere}"], [*ADVICE[:2], "{tensors}"], [*ADVICE, RUN], [*ADVICE, "--no-such"]),
    *([*ADVICE, "--lr", value] for value in ("0", "-1", "nan", "inf", "x")),
    [*ADVICE, "--lr", "1e12", "--steps", "80", "--minibatches", "2", "--directions", "1", "--images", "20"],
    *([*ADVICE, "--momentum", value] for value in ("1", "-0.5", "nan", "x")),
    *([*ADVICE, f"--{name}", value] for name in ("directions", "minibatches", "images") for value in ("0", "-1", "x")),
    *([*ADVICE, "--steps", "1"], [*ADVICE, "--steps", "-1"], [*ADVICE, "--device", "tpu"], [*ADVICE, "--threads", "0"]),
]


@pytest.fixture(scope="session")
def places(experiment, runs, tmp_path_factory) -> dict[str, Any]:
    """What the bad inputs name: a real experiment, and much that is none."""
    here = tmp_path_factory.mktemp("places")
    made = {"sgd": {0: [90.0], 1: [91.0]}, "ema": {0: [92.0], 1: [92.0]}, "gone": {0: []}}
    hand = write_experiment(here / "hand", made)
    write_experiment(here / "other", made, identity={**IDENTITY, "copies": "shared"})
    write_experiment(here / "metrics", made, metrics=[])
    write_experiment(here / "unfinished", {"sgd": {0: None}})
    write_experiment(here / "diverged", {"sgd": {0: []}})
    (here / "empty").mkdir()
    (here / "file").write_text("a file")
    (here / "link").symlink_to(experiment)
    os.mkfifo(here / "fifo")
    save_file({"weight": zeros(3)}, here / "tensors.safetensors")
    for name, (file, content) in BROKEN.items():
        shutil.copytree(hand, here / "broken" / name)
        target = here / "broken" / name / file
        if content is None:
            target.unlink()
            target.mkdir()
        else:
            target.write_bytes(content if isinstance(content, bytes) else _changed(target, content))
    return {path.stem: path for path in here.iterdir()} | {"good": experiment, "nowhere": here / "nowhere"} | runs


RESULT = "sgd/seed-0/result.json"
BROKEN: dict[str, tuple[str, bytes | dict[str, object] | None]] = {
    "empty": ("experiment.json", b""),
    "list": ("experiment.json", b"[]"),
    "binary": ("experiment.json", bytes(range(256))),
    "deep": ("experiment.json", b"[" * 50_000),
    "identity": ("experiment.json", {"identity": 3}),
    "metrics": ("experiment.json", {"metrics": [{"name": "x"}]}),
    "nan": (RESULT, {"seconds": float("nan")}),
    "text": (RESULT, b"PK rubbish"),
    "result": (RESULT, b"{}"),
    "record": ("sgd/seed-0/metrics.jsonl", b"{}\n"),
    "seed": (RESULT, {"seed": "one"}),
    "unit": (RESULT, {"unit": None}),
    "no-metric": (RESULT, {"metrics": {}}),
    "huge": (RESULT, {"seconds": 10**400}),
    "folder": ("experiment.json", None),
}


def _changed(file: Path, change: dict[str, object]) -> bytes:
    return json.dumps({**json.loads(file.read_text()), **change}).encode()


def snapshot(folder: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of the last change of every file: each is written by being replaced, so nothing is changed behind them."""
    found = {path: path.stat() for path in folder.rglob("*") if path.is_file()}
    return {path: (stat.st_size, stat.st_mtime_ns) for path, stat in found.items()}


@pytest.mark.parametrize("words", [["compare", *words] for words in COMPARE] + LANDSCAPE + THEORY, ids=" ".join)
def test_it_is_one_line_and_nothing_is_lost(places, tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    before = snapshot(places["good"]) | snapshot(places["hand"])
    status = main([word.format(**places) for word in words])
    said = capsys.readouterr()
    assert status in (1, 2)
    assert said.err.startswith("lookaround: ")
    assert len(said.err.splitlines()) == 1
    assert "Traceback" not in said.out + said.err
    assert snapshot(places["good"]) | snapshot(places["hand"]) == before
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_they_are_more_than_a_hundred():
    assert len(COMPARE) + len(LANDSCAPE) + len(THEORY) > 140
