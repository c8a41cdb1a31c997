from __future__ import annotations

import errno
import json
import os
import re
from dataclasses import replace

import pytest
import torch

from lookaround.commands.runs import load_run
from lookaround.experiment import DivergedError, UsageError, train
from lookaround.experiment.comparison import cpu_threads, to_device
from lookaround.experiment.records import read_records
from lookaround.experiment.training import Training


@pytest.fixture
def config(tiny):
    return replace(tiny, methods=("sgd", "lookaround"), seeds=(0, 7))


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_everything_is_there_and_agrees(config, tmp_path, display):
    out = tmp_path / "runs" / "a"
    comparison = train(config, out, display)
    runs = [("sgd", 0), ("lookaround", 0), ("sgd", 7), ("lookaround", 7)]
    assert [label for label, _ in display.runs] == [f"{method}, seed {seed}" for method, seed in runs]
    assert [(result.method, result.seed) for result in comparison.results] == runs
    assert display.minibatches == len(display.losses) == 4 * 8
    assert display.closed
    for method, seed in runs:
        names = {path.name.split(".")[0] for path in (out / method / f"seed-{seed}").iterdir()}
        assert names == {"checkpoint", "events", "metrics", "model", "result"}
    saved = json.loads((out / "config.json").read_text())
    assert saved["config"] == config.as_json()
    assert set(saved["environment"]) == {"python", "torch", "lookaround", "platform", "device", "threads"}
    results = json.loads((out / "results.json").read_text())
    assert results["runs"] == [result.__dict__ for result in comparison.results]
    assert [row["method"] for row in results["rows"]] == ["sgd", "lookaround"]
    top1 = [run["top1"] for run in results["runs"] if run["method"] == "sgd"]
    assert results["rows"][0]["top1"]["mean"] == pytest.approx(sum(top1) / 2)
    assert (out / "table.md").read_text() == comparison.table + "\n"
    assert comparison.curves.read_bytes().startswith(b"\x89PNG")
    assert all(path.exists() for path in comparison.networks)


def test_a_finished_experiment_is_not_trained_again(config, tmp_path, display, monkeypatch):
    first = train(config, tmp_path, display)
    files = contents(tmp_path)
    monkeypatch.setattr(Training, "train", lambda self, stop: pytest.fail("trained again"))
    for resume in (False, True):
        assert train(config, tmp_path, display, resume=resume).results == first.results
    assert display.notes == [f"every run in {tmp_path} is finished; nothing to train"] * 2
    assert contents(tmp_path) == files


def test_an_unfinished_experiment_goes_on_only_when_asked(config, tmp_path, display):
    done = train(config, tmp_path, display).results
    (tmp_path / "sgd" / "seed-7" / "result.json").unlink()
    with pytest.raises(UsageError, match="holds this experiment, unfinished: add --resume to go on"):
        train(config, tmp_path, display)
    again = train(config, tmp_path, display, resume=True).results
    assert [replace(result, seconds=0.0) for result in again] == [replace(result, seconds=0.0) for result in done]


def test_a_run_that_diverges_is_a_row_and_the_others_go_on(config, tmp_path, display):
    config = replace(config, methods=("sgd", "adamw"), lr=1e30)  # adamw has a learning rate of its own
    comparison = train(config, tmp_path, display)
    assert [(result.method, result.seed) for result in comparison.results] == [("adamw", 0), ("adamw", 7)]
    assert [(run.method, run.seed) for run in comparison.diverged] == [("sgd", 0), ("sgd", 7)]
    assert comparison.networks == [tmp_path / "adamw" / f"seed-{seed}" / "model.safetensors" for seed in (0, 7)]
    assert display.notes == [run.diverged for run in comparison.diverged]
    assert display.notes[0].startswith("sgd with seed 0 diverged: ")
    assert len(display.losses) + sum(display.skipped) == display.minibatches
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved["diverged"] == [run.__dict__ for run in comparison.diverged]
    rows = [(row["method"], row["seeds"], row["diverged"]) for row in saved["rows"]]
    assert rows == [("sgd", 0, 2), ("adamw", 2, 0)]
    assert (tmp_path / "table.md").read_text().splitlines()[2].startswith("| sgd (2 of 2 diverged) |            – |")
    assert not list((tmp_path / "sgd").rglob("model.safetensors"))
    files = contents(tmp_path)
    assert train(config, tmp_path, display, resume=True).diverged == comparison.diverged
    assert contents(tmp_path) == files


@pytest.mark.parametrize("method", ["lookaround", "lookaround+swa", "swad", "lookaround+sam"])
@pytest.mark.parametrize("lr", [1e3, 1e5])
def test_whatever_is_not_finite_first_it_is_a_row(config, tmp_path, display, method, lr):
    """With a finite but absurd rate it can be batch norm's statistics or the held-out loss, and not the weights."""
    config = replace(config, methods=(method, "adamw"), seeds=(0,), lr=lr, rho=1e30, warmup_epochs=0.0, swad_every=1)
    comparison = train(config, tmp_path, display)
    assert [result.method for result in comparison.results] == ["adamw"]
    (run,) = comparison.diverged
    an_epoch = 4 * 3 * (2 if "sam" in method else 1)
    assert f" is not finite in epoch {1 + (run.gradient_evaluations - 1) // an_epoch}; " in run.diverged
    with pytest.raises(UsageError, match=f"holds no network: {re.escape(method)} with seed 0 diverged"):
        load_run(tmp_path / method / "seed-0")


def test_when_every_run_diverges_that_is_an_error_after_everything_is_written(config, tmp_path, display):
    config = replace(config, methods=("sgd",), lr=1e30)
    with pytest.raises(DivergedError, match=r"^every run has diverged: sgd with seed 0 diverged: .* try a lower"):
        train(config, tmp_path, display)
    assert "2 of 2 diverged" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "curves.png").exists()
    with pytest.raises(DivergedError, match="every run has diverged"):
        train(config, tmp_path, display)


def test_resume_starts_what_was_not_begun(config, tmp_path, display):
    assert train(replace(config, seeds=(0,)), tmp_path / "new", display, resume=True).results


@pytest.mark.parametrize("resume", [False, True])
def test_another_experiment_in_the_folder_is_named_by_the_first_field_that_differs(config, tmp_path, display, resume):
    train(replace(config, seeds=(0,)), tmp_path, display)
    files = contents(tmp_path)
    with pytest.raises(UsageError, match=r"holds another experiment: lr was 0\.1 and is now 0\.2; "):
        train(replace(config, seeds=(0,), lr=0.2), tmp_path, display, resume=resume)
    assert contents(tmp_path) == files


def test_other_software_is_mentioned(config, tmp_path, display):
    config = replace(config, methods=("sgd",), seeds=(0,))
    train(config, tmp_path, display)
    saved = json.loads((tmp_path / "config.json").read_text())
    saved["environment"]["torch"] = "1.0"
    (tmp_path / "config.json").write_text(json.dumps(saved))
    train(config, tmp_path, display)
    assert "begun with torch 1.0 (now " in display.notes[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "cifar10", "root": "/no/such/folder"}, "there is no folder /no/such/folder"),
        ({"data": "nosuch"}, "unknown data set 'nosuch'"),
        ({"methods": ("sgd", "nosuch")}, "unknown method 'nosuch'; choose from sgd, adamw, lookahead"),
        ({"model": "nosuch"}, "unknown model 'nosuch'"),
        ({"augmentations": ("nosuch",)}, "unknown augmentation 'nosuch'"),
        ({"branches": 9}, "default augmentations for 1 to"),
        ({"model": "resnet18"}, "has a fixed width, got width=4"),
        ({"train_images": 5000}, "takes 1 to 1437 images, got 5000"),
        ({"device": "quantum"}, "unknown device 'quantum'; choose auto, cpu, cuda or cuda:N"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used: "),
    ],
)
def test_what_cannot_be_used_is_named_before_anything_is_written(config, tmp_path, display, changes, message):
    with pytest.raises(UsageError, match=message):
        train(replace(config, **changes), tmp_path / "out", display)
    assert not (tmp_path / "out").exists()


def test_a_process_killed_before_it_wrote_anything_leaves_a_folder_that_can_be_used(config, tmp_path, display):
    (tmp_path / ".config.json.partial").write_text("{")
    assert train(replace(config, methods=("sgd",), seeds=(0,)), tmp_path, display).results
    assert not list(tmp_path.glob(".*"))


def test_a_folder_of_other_things_is_left_alone(config, tmp_path, display):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="holds files, but no experiment; choose an empty or a new folder"):
        train(config, tmp_path, display)
    with pytest.raises(UsageError, match="is a file; choose a folder"):
        train(config, tmp_path / "thesis.txt", display)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("name", ["config.json", "sgd/seed-0/result.json"])
def test_a_damaged_file_is_named(config, tmp_path, display, name):
    config = replace(config, methods=("sgd",), seeds=(0,))
    train(config, tmp_path, display)
    (tmp_path / name).write_text("{")
    with pytest.raises(UsageError, match=f"{name} is damaged"):
        train(config, tmp_path, display, resume=True)


def test_a_full_disk_stops_it_and_loses_nothing(config, tmp_path, display, monkeypatch):
    config = replace(config, methods=("lookaround",), seeds=(0,))
    whole = train(config, tmp_path / "whole", display).results
    replaced: list[str] = []
    move = os.replace

    def full(source, target):
        if target.name == "checkpoint.pt":
            replaced.append(target.name)
            if len(replaced) == 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        move(source, target)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space left on device"):
            train(config, out, display)
    run = out / "lookaround" / "seed-0"
    assert len(read_records(run / "metrics.jsonl")) == 2
    assert not list(out.rglob("*.partial"))
    again = train(config, out, display, resume=True).results
    assert display.runs[-1] == ("lookaround, seed 0", 4)
    assert replace(again[0], seconds=0.0) == replace(whole[0], seconds=0.0)
    assert (run / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "lookaround" / "seed-0" / "model.safetensors"
    ).read_bytes()


def test_data_goes_to_the_device_whole(digits):
    moved = to_device(digits, "auto")
    assert len({getattr(moved, name).device for name in ("train_images", "train_labels", "test_images")}) == 1


def test_threads_are_set_recorded_and_put_back(config, tmp_path, display):
    seen: list[int] = []
    display.begin = lambda minibatches: seen.append(torch.get_num_threads())
    with cpu_threads(3):
        train(replace(config, methods=("sgd",), seeds=(0,), threads=1), tmp_path, display)
        assert torch.get_num_threads() == 3
        with cpu_threads(None):
            assert torch.get_num_threads() == 3
    assert seen == [1]
    assert json.loads((tmp_path / "config.json").read_text())["environment"]["threads"] == 1
