from __future__ import annotations

import pytest

from lookaround.cli import main
from lookaround.methods import METHODS
from lookaround.methods.presets import PRESETS


def test_status_says_how_far_every_run_is_and_changes_nothing(tmp_path, capsys):
    out = tmp_path / "a"
    words = ["--train-images", "60", "--test-images", "30", "--width", "4", "--epochs", "2", "--device", "cpu"]
    words += ["--methods", "sgd:batch=20", "ema:batch=20", "sgd:lr=1e30", "--seeds", "0", "1", "--out", str(out)]
    assert main(["train", *words]) == 0
    (out / "ema,batch=20" / "seed-0" / "result.json").unlink()
    (out / "ema,batch=20" / "seed-1").rename(tmp_path / "away")
    metrics = out / "ema,batch=20" / "seed-0" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().splitlines(keepends=True)[0])
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main(["status", str(out)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["method", "seed", "state", "top-1", "%"]
    assert [line[:3] for line in lines[1:7]] == [
        ["sgd:batch=20", "0", "finished"],
        ["ema:batch=20", "0", "50%"],
        ["sgd:lr=1e+30", "0", "diverged"],
        ["sgd:batch=20", "1", "finished"],
        ["ema:batch=20", "1", "not"],
        ["sgd:lr=1e+30", "1", "diverged"],
    ]
    assert " ".join(lines[8]) == "4 of 6 runs ended; no process is training here"
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("words", "said"), [([], "Missing"), (["/no/such"], "holds no experiment: there is no")])
def test_status_of_nothing_is_refused(refused, words, said):
    assert said in refused("status", *words)


def test_methods_are_listed_with_their_settings_in_80_columns(capsys):
    assert main(["methods"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert [name for name in METHODS if name not in shown] == []
    for part in (
        "lookaround: d branches, averaged every k steps",
        "k ",
        "a whole number or epoch, at least 1 (5); inner steps",
    ):
        assert part in shown


def test_presets_are_listed_with_their_settings_and_what_was_measured(capsys):
    assert main(["methods"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for name, preset in PRESETS.items():
        assert f"{name}: {preset.summary} is {preset.method} measured {preset.evidence}" in shown


def test_a_preset_is_listed_as_the_method_that_it_is(capsys):
    assert main(["methods", "anytime"]) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("anytime: moving average")
    assert second.split() == ["is", "power-ema:width=0.1,schedule=constant"]


def test_one_method_is_listed_with_its_inner_optimizers_settings(capsys):
    assert main(["methods", "lookahead:inner=adamw"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert all(f"  {name} " in shown for name in ("k", "alpha", "betas", "weight_decay", "batch", "schedule"))
    assert "momentum " not in shown


def test_an_unknown_method_is_refused(refused):
    assert "unknown method 'adan'" in refused("methods", "adan")
