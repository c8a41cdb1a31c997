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
from lookaround.experiment.comparison import cpu_threads
from lookaround.experiment.records import read_records
from lookaround.experiment.running import device_named
from lookaround.experiment.training import Training
from lookaround.methods import Spec
from reference.tiny_experiment import a_plan

BATCH = "batch=15"
SGD, LOOKAROUND = f"sgd:{BATCH}", f"lookaround:k=3,{BATCH}"


def changed(*methods, seeds=(0,), **changes):
    """The plan with other methods, seeds and options."""
    found = a_plan(*(methods or (SGD, LOOKAROUND)), seeds=seeds, **changes)
    return replace(found, budget=replace(found.budget, budget=360))


@pytest.fixture
def plan():
    return changed(seeds=(0, 7))


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_everything_is_there_and_agrees(plan, tmp_path, display):
    out = tmp_path / "runs" / "a"
    comparison = train(plan, out, display)
    runs = [(SGD, 0), (LOOKAROUND, 0), (SGD, 7), (LOOKAROUND, 7)]
    assert display.runs == [(f"{method}, seed {seed}", 0, 8) for method, seed in runs]
    assert [(result.method, result.seed) for result in comparison.results] == runs
    assert (display.begun, len(display.losses), display.closed) == (4, 4 * 8, True)
    for spec, seed in plan.runs():
        names = {path.name.split(".")[0] for path in (out / spec.slug / f"seed-{seed}").iterdir()}
        assert names == {"checkpoint", "events", "metrics", "model", "result"}
    saved = json.loads((out / "experiment.json").read_text())
    assert saved["options"] == plan.options()
    assert saved["identity"]["images"] == {"train": 64, "held-out": 0, "test": 30}
    assert (saved["unit"], saved["budget"]) == ("samples", 360)
    assert [metric["name"] for metric in saved["metrics"]] == ["top1", "top5", "nll", "ece"]
    assert set(saved["environment"]) == {"python", "torch", "lookaround", "platform", "device", "threads"}
    results = json.loads((out / "results.json").read_text())
    assert results["runs"] == [result.__dict__ for result in comparison.results]
    assert {run["task"] for run in results["runs"]} == {saved["task_id"]}
    assert [row["method"] for row in results["rows"]] == [SGD, LOOKAROUND]
    top1 = [run["metrics"]["top1"] for run in results["runs"] if run["method"] == SGD]
    assert results["rows"][0]["metrics"]["top1"]["mean"] == pytest.approx(sum(top1) / 2)
    lines = (out / "table.md").read_text().splitlines()
    assert lines[0] == comparison.table.splitlines()[0]
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["method", "-" * len(LOOKAROUND), SGD, LOOKAROUND]
    assert comparison.table.splitlines()[0] == "digits, 3 shared copies, 360 samples, seeds 0 7, test data"
    assert comparison.curves.read_bytes().startswith(b"\x89PNG")
    assert "samples seen" in comparison.curves.with_suffix(".svg").read_text()
    assert all(path.exists() for path in comparison.networks)


def test_a_finished_experiment_is_not_trained_again(plan, tmp_path, display, monkeypatch):
    first = train(plan, tmp_path, display)
    files = contents(tmp_path)
    monkeypatch.setattr(Training, "train", lambda self, stop: pytest.fail("trained again"))
    for resume in (False, True):
        assert train(plan, tmp_path, display, resume=resume).results == first.results
    assert display.notes == [f"every run in {tmp_path} is finished; nothing to train"] * 2
    assert contents(tmp_path) == files


def test_an_unfinished_experiment_goes_on_only_when_asked(plan, tmp_path, display):
    done = train(plan, tmp_path, display).results
    (tmp_path / plan.methods[0].slug / "seed-7" / "result.json").unlink()
    with pytest.raises(UsageError, match="holds this experiment, unfinished: add --resume to go on"):
        train(plan, tmp_path, display)
    again = train(plan, tmp_path, display, resume=True).results
    assert [replace(result, seconds=0.0) for result in again] == [replace(result, seconds=0.0) for result in done]


def test_a_run_that_diverges_is_a_row_and_the_others_go_on(tmp_path, display):
    wild = f"sgd:lr=1e30,{BATCH}"
    plan = changed(wild, SGD, seeds=(0, 7))
    comparison = train(plan, tmp_path, display)
    label = plan.methods[0].label
    assert [(result.method, result.seed) for result in comparison.results] == [(SGD, 0), (SGD, 7)]
    assert [(run.method, run.seed) for run in comparison.diverged] == [(label, 0), (label, 7)]
    assert comparison.networks == [
        tmp_path / plan.methods[1].slug / f"seed-{seed}" / "model.safetensors" for seed in (0, 7)
    ]
    assert display.notes == [run.diverged for run in comparison.diverged]
    assert display.notes[0].startswith(f"{label} with seed 0 diverged: ")
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved["diverged"] == [run.__dict__ for run in comparison.diverged]
    rows = [(row["method"], row["seeds"], row["diverged"]) for row in saved["rows"]]
    assert rows == [(label, 0, 2), (SGD, 2, 0)]
    first = (tmp_path / "table.md").read_text().splitlines()[4]
    assert re.match(rf"\| {re.escape(label)} \(2 of 2 diverged\) \| +– \|", first)
    assert not list((tmp_path / plan.methods[0].slug).rglob("model.safetensors"))
    files = contents(tmp_path)
    assert train(plan, tmp_path, display, resume=True).diverged == comparison.diverged
    assert contents(tmp_path) == files


@pytest.mark.filterwarnings("ignore:branch . of 3 has weights that are infinite or NaN")
@pytest.mark.parametrize("method", ["lookaround:", "lookaround+swa:", "swad:evaluate=1,", "lookaround+sam:rho=1e30,"])
@pytest.mark.parametrize("lr", ["1e3", "1e5"])
def test_whatever_is_not_finite_first_it_is_a_row(tmp_path, display, method, lr):
    """With a finite but absurd rate it can be batch norm's statistics or the held-out loss, and not the weights."""
    plan = changed(f"{method}lr={lr},warmup=0,{BATCH}", SGD)
    comparison = train(plan, tmp_path, display)
    assert [result.method for result in comparison.results] == [SGD]
    (run,) = comparison.diverged
    assert " is not finite in epoch " in run.diverged
    with pytest.raises(UsageError, match=f"holds no network: {re.escape(plan.methods[0].label)} with seed 0 diverged"):
        load_run(tmp_path / plan.methods[0].slug / "seed-0")


def test_when_every_run_diverges_that_is_an_error_after_everything_is_written(tmp_path, display):
    plan = changed("sgd:lr=1e30", seeds=(0, 7))
    with pytest.raises(
        DivergedError, match=r"^every run has diverged: sgd:lr=1e\+30 with seed 0 diverged: .* try a lower"
    ):
        train(plan, tmp_path, display)
    assert "2 of 2 diverged" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "curves.png").exists()
    with pytest.raises(DivergedError, match="every run has diverged"):
        train(plan, tmp_path, display)


def test_resume_starts_what_was_not_begun(tmp_path, display):
    assert train(changed(), tmp_path / "new", display, resume=True).results


@pytest.mark.parametrize("resume", [False, True])
def test_another_experiment_in_the_folder_is_named_by_the_first_option_that_differs(tmp_path, display, resume):
    train(changed(), tmp_path, display)
    files = contents(tmp_path)
    for other, said in (
        (changed(SGD, f"lookaround:k=4,{BATCH}"), r"--methods was sgd:batch=15 lookaround:k=3,batch=15 and is now sgd"),
        (changed(width=5), "--width was 4 and is now 5"),
        (changed(copies="independent"), "--copies was shared and is now independent"),
    ):
        with pytest.raises(UsageError, match=f"holds another experiment: {said}.*; give --resume and --out alone"):
            train(other, tmp_path, display, resume=resume)
    assert contents(tmp_path) == files


def test_other_software_is_mentioned(tmp_path, display):
    plan = changed(SGD)
    train(plan, tmp_path, display)
    saved = json.loads((tmp_path / "experiment.json").read_text())
    saved["environment"]["torch"] = "1.0"
    (tmp_path / "experiment.json").write_text(json.dumps(saved))
    train(plan, tmp_path, display)
    assert "begun with torch 1.0 (now " in display.notes[0]


def test_other_data_than_those_it_was_begun_with_are_refused(tmp_path, display):
    plan = changed(SGD)
    train(plan, tmp_path, display)
    saved = json.loads((tmp_path / "experiment.json").read_text())
    saved["identity"]["digest"], saved["task_id"] = "0" * 16, "0" * 16
    (tmp_path / "experiment.json").write_text(json.dumps(saved))
    with pytest.raises(UsageError, match="was begun with other data: digest differ"):
        train(plan, tmp_path, display, resume=True)


def weights_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("model.safetensors")}


def test_extended_by_methods_and_seeds_it_is_what_it_would_have_been_at_once(tmp_path, display):
    first = changed(SGD, seeds=(0,))
    train(first, tmp_path / "grown", display)
    train(first, tmp_path / "grown", display, add_seeds=(7,))
    second = replace(first, seeds=(0, 7))
    train(second, tmp_path / "grown", display, add_methods=(Spec.parse(LOOKAROUND),))
    assert display.begun == 2
    train(changed(seeds=(0, 7)), tmp_path / "whole", display)
    assert weights_of(tmp_path / "grown") == weights_of(tmp_path / "whole")
    said = [json.loads((tmp_path / name / "experiment.json").read_text()) for name in ("grown", "whole")]
    assert said[0] == said[1]
    tables = [(tmp_path / name / "table.md").read_text().splitlines() for name in ("grown", "whole")]
    assert [line.split("|")[:3] for line in tables[0]] == [line.split("|")[:3] for line in tables[1]]


@pytest.mark.parametrize(
    ("methods", "seeds", "said"),
    [
        ((SGD,), (), "--methods names sgd:batch=15 twice"),
        ((), (0,), "--seeds names 0 twice"),
        (("sgd:lr=0.1,batch=15",), (), "sgd:batch=15 and sgd:lr=0.1,batch=15 are the same on digits"),
        ((f"swa:swa_cycle=1000,{BATCH}",), (), "swa_cycle must be at most"),
        (("swad",), (), "was begun with other data: what is held out of them differs"),
    ],
)
def test_an_extension_that_cannot_be_changes_nothing(tmp_path, display, methods, seeds, said):
    plan = changed(SGD)
    train(plan, tmp_path, display)
    files = contents(tmp_path)
    with pytest.raises(UsageError, match=said):
        train(plan, tmp_path, display, add_methods=tuple(map(Spec.parse, methods)), add_seeds=seeds)
    assert {path: content for path, content in contents(tmp_path).items() if path.name != ".lock"} == {
        path: content for path, content in files.items() if path.name != ".lock"
    }


def test_only_an_experiment_can_be_extended(tmp_path, display):
    with pytest.raises(UsageError, match="holds no experiment to extend"):
        train(changed(SGD), tmp_path / "new", display, add_seeds=(1,))
    assert not (tmp_path / "new").exists()


def test_a_setting_that_a_method_refuses_is_noticed_before_the_first_run_begins(tmp_path, display):
    for late, said in (
        ("swa:swa_cycle=1000", "swa_cycle must be at most"),
        ("snapshot-ensemble:cycles=100", "cycles must be at most the run's 8 minibatches, got 100"),
        ("sgd:momentum=-1", "Invalid momentum value"),
        ("sgd:nesterov=true,momentum=0", "Nesterov"),
        ("adamw:betas=0.9", "adamw does not take"),
        ("sgd:schedule=multi-step", "milestones must rise"),
    ):
        with pytest.raises(UsageError, match=said):
            train(changed(SGD, f"{late},{BATCH}"), tmp_path / "out", display)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "cifar10", "root": "/no/such/folder"}, "there is no folder /no/such/folder"),
        ({"data": "nosuch"}, "unknown data set 'nosuch'"),
        ({"model": "nosuch"}, "unknown model 'nosuch'"),
        ({"augmentations": ("nosuch",)}, "unknown augmentation 'nosuch'"),
        ({"branches": 9}, "default augmentations for 1 to"),
        ({"model": "resnet18"}, "has a fixed width, got width=4"),
        ({"train_images": 5000}, "takes 1 to 1437 images, got 5000"),
        ({"device": "quantum"}, "unknown device 'quantum'; choose auto, cpu, cuda or cuda:N"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used: "),
    ],
)
def test_what_cannot_be_used_is_named_before_anything_is_written(plan, tmp_path, display, changes, message):
    with pytest.raises(UsageError, match=message):
        train(changed(**changes), tmp_path / "out", display)
    assert not (tmp_path / "out").exists()


def test_a_process_killed_before_it_wrote_anything_leaves_a_folder_that_can_be_used(plan, tmp_path, display):
    (tmp_path / ".experiment.json.0123abcd.partial").write_text("{")
    assert train(changed(SGD), tmp_path, display).results
    assert [path.name for path in tmp_path.glob(".*")] == [".lock"]


def test_a_folder_of_other_things_is_left_alone(plan, tmp_path, display):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="holds files, but no experiment; choose an empty or a new folder"):
        train(plan, tmp_path, display)
    with pytest.raises(UsageError, match="is a file; choose a folder"):
        train(plan, tmp_path / "thesis.txt", display)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("name", ["experiment.json", "sgd,batch=15/seed-0/result.json"])
def test_a_damaged_file_is_named(plan, tmp_path, display, name):
    plan = changed(SGD)
    train(plan, tmp_path, display)
    (tmp_path / name).write_text("{")
    with pytest.raises(UsageError, match=f"{name} is damaged"):
        train(plan, tmp_path, display, resume=True)


def test_a_full_disk_stops_it_and_loses_nothing(plan, tmp_path, display, monkeypatch):
    plan = changed(LOOKAROUND)
    whole = train(plan, tmp_path / "whole", display).results
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
            train(plan, out, display)
    run = out / plan.methods[0].slug / "seed-0"
    assert len(read_records(run / "metrics.jsonl")) == 2
    assert not list(out.rglob("*.partial"))
    again = train(plan, out, display, resume=True).results
    assert display.runs[-1] == (f"{LOOKAROUND}, seed 0", 4, 8)
    assert replace(again[0], seconds=0.0) == replace(whole[0], seconds=0.0)
    assert (run / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / plan.methods[0].slug / "seed-0" / "model.safetensors"
    ).read_bytes()


def test_the_device_named_auto_is_the_best_there_is(digits):
    device = device_named("auto")
    assert device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    moved = digits.to(device)
    assert len({getattr(moved, name).device for name in ("train_images", "train_labels", "test_images")}) == 1


def test_threads_are_set_recorded_and_put_back(plan, tmp_path, display):
    seen: list[int] = []
    display.begin = lambda runs: seen.append(torch.get_num_threads())
    with cpu_threads(3):
        train(changed(SGD, threads=1), tmp_path, display)
        assert torch.get_num_threads() == 3
        with cpu_threads(None):
            assert torch.get_num_threads() == 3
    assert seen == [1]
    assert json.loads((tmp_path / "experiment.json").read_text())["environment"]["threads"] == 1
