from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest

from lookaround.experiment import DivergedError, UsageError, train
from lookaround.experiment.edges import edges
from lookaround.experiment.folder import saved_experiment
from lookaround.experiment.tuning import Search, Trial, rungs, tried_table, tune
from lookaround.methods import Spec
from lookaround.tasks.base import Metric
from reference.tiny_experiment import a_plan

BATCH = "batch=16"
GRID = {"lr": ["0.01", "0.1", "0.3"]}


@pytest.fixture
def plan():
    plan = a_plan(f"sgd:{BATCH}", f"lookaround:k=2,{BATCH}", seeds=(0, 1))
    return replace(plan, budget=replace(plan.budget, budget=4 * 3 * 16))


def scores_of(folder):
    results = json.loads((folder / "results.json").read_text())
    return {(run["method"], run["seed"]): run["metrics"] for run in results["runs"]}


def test_the_chosen_are_the_best_on_held_out_data_and_the_result_has_fresh_seeds(plan, tmp_path, display):
    result = tune(plan, Search(GRID, (7, 8)), tmp_path, display)
    tuned = json.loads((tmp_path / "tuned.json").read_text())
    found = scores_of(tmp_path / "rung-1")
    assert saved_experiment(tmp_path / "rung-1")["options"]["score"] == "held-out"
    assert saved_experiment(tmp_path / "rung-1")["identity"]["images"] == {"train": 51, "held-out": 13, "test": 30}
    for method in ("sgd", "lookaround"):
        mine = [trial for trial in tuned["trials"] if trial["method"].startswith(f"{method}:")]
        assert len(mine) == 3
        for trial in mine:
            runs = [found[trial["label"], seed] for seed in (7, 8)]
            assert trial["scores"] == [run["top1"] for run in runs]
            assert trial["mean"] == pytest.approx(sum(trial["scores"]) / 2)
        best = min(mine, key=lambda trial: (-trial["mean"], trial["loss"]))
        assert [trial["label"] for trial in mine if trial["chosen"]] == [best["label"]]
        assert {row.method for row in result.rows} >= {best["label"]}
    assert {(effort["candidates"], effort["runs"]) for effort in tuned["effort"].values()} == {(3, 6)}
    assert len({effort["samples"] for effort in tuned["effort"].values()}) == 1
    assert saved_experiment(tmp_path / "result")["identity"]["images"] == {"train": 64, "held-out": 0, "test": 30}
    assert {run.seed for run in result.results} == {0, 1}
    assert (tmp_path / "tried.md").read_text().count("| * |") == 2


def test_halving_keeps_the_better_half_at_twice_the_budget(plan, tmp_path, display):
    plan = replace(plan, budget=replace(plan.budget, budget=8 * 3 * 16))
    tune(plan, Search({"lr": ["0.01", "0.03", "0.1", "0.3"]}, (7,), "halving"), tmp_path, display)
    trials = json.loads((tmp_path / "tuned.json").read_text())["trials"]
    for method in (f"sgd:{BATCH}", f"lookaround:k=2,{BATCH}"):
        mine = [trial for trial in trials if trial["method"] == method]
        by_budget = [[t for t in mine if t["budget"] == budget] for budget in sorted({t["budget"] for t in mine})]
        assert [len(rung) for rung in by_budget] == [4, 2, 1]
        for rung, following in pairwise(by_budget):
            ranked = sorted(rung, key=lambda trial: (-trial["mean"], trial["loss"]))
            assert {t["label"] for t in following} == {t["label"] for t in ranked[: len(following)]}
    assert [trials[place]["budget"] for place in (0, 8, 12)] == [77, 154, 307]  # of 384 less the fifth held out


def test_rungs():
    assert rungs(Search({}, strategy="halving"), 1) == [1]
    assert rungs(Search({}, strategy="halving"), 5) == [0.25, 0.5, 1]
    assert rungs(Search({}), 5) == [1]


def test_stopped_and_resumed_it_tries_nothing_twice(plan, tmp_path, display, monkeypatch):
    search = Search(GRID, (7,))
    whole = tune(plan, search, tmp_path / "whole", display)
    calls = []

    def once(plan, out, *rest, **named):
        calls.append(out.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train(plan, out, *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr("lookaround.experiment.tuning.train", once)
        with pytest.raises(KeyboardInterrupt):
            tune(plan, search, tmp_path / "part", display)
    with pytest.raises(UsageError, match="part is not empty: add --resume to go on with the search in it"):
        tune(plan, search, tmp_path / "part", display)
    rest = tune(plan, search, tmp_path / "part", display, resume=True)
    assert f"every run in {tmp_path / 'part' / 'rung-1'} is finished; nothing to train" in display.notes
    assert [run.metrics for run in rest.results] == [run.metrics for run in whole.results]


@pytest.mark.parametrize(
    ("search", "said"),
    [
        (Search(GRID, (7, 1)), "seed 1 is of the search and of the result"),
        (Search({"k": ["2"]}, (7,)), "sgd:batch=16 has none of the settings in --grid to tune"),
        (Search({**GRID, "rho": ["2"]}, (7,)), "--grid: none of .* has a setting 'rho' to tune"),
        (
            Search({"lr": ["0.01", "0.03", "0.1", "0.3"]}, (7,), "halving"),
            "a minibatch costs 48 samples, more than the",
        ),
        (Search({"lr": ["-1", "1"]}, (7,)), "Invalid learning rate: -1.0"),
        (Search({"lr": ["0.1", "0.1"]}, (7,)), "--grid names sgd:lr=0.1,batch=16 twice"),
        (Search(GRID, (7,), by="bleu"), "unknown metric 'bleu' for --by; choose one of top1, top5, nll, ece"),
        (Search(GRID, (7,), trials=4), "--trials must be from 1 to 3"),
    ],
)
def test_what_cannot_be_is_named_before_anything_is_written(plan, tmp_path, display, search, said):
    with pytest.raises(UsageError, match=said):
        tune(plan, search, tmp_path / "out", display)
    assert not (tmp_path / "out").exists()


def test_what_diverges_is_not_chosen_and_where_all_do_that_is_said(plan, tmp_path, display):
    tune(plan, Search({"lr": ["1e30", "0.01"]}, (7,)), tmp_path / "a", display)
    trials = json.loads((tmp_path / "a" / "tuned.json").read_text())["trials"]
    assert {trial["label"].split("lr=")[1]: (trial["mean"] is None, trial["chosen"]) for trial in trials} == {
        "1e+30,batch=16": (True, False),
        "0.01,batch=16": (False, True),
    }
    only = replace(plan, methods=plan.methods[:1])
    with pytest.raises(DivergedError, match="every candidate diverged: give --grid lower learning rates"):
        tune(only, Search({"lr": ["1e30", "1e31"]}, (7,)), tmp_path / "b", display)


def test_a_best_value_at_the_edge_of_the_grid_is_said_in_a_line(plan, tmp_path, display):
    only = replace(plan, methods=plan.methods[:1])
    tune(only, Search({"lr": ["1e-7", "1e-6"], "momentum": ["0.9"]}, (7,)), tmp_path, display)
    tuned = json.loads((tmp_path / "tuned.json").read_text())
    (best,) = [trial["label"] for trial in tuned["trials"] if trial["chosen"]]
    side = ("lowest", "lower") if "lr=1e-07" in best else ("highest", "higher")
    lr = "1e-07" if side[0] == "lowest" else "1e-06"
    said = f"sgd:batch=16: the best lr, {lr}, is the {side[0]} that was tried; a {side[1]} one may be better"
    assert tuned["edges"] == [said]
    assert (tmp_path / "tried.md").read_text().endswith(f"|\n\n{said}\n")


def test_which_chosen_values_lie_at_the_edge():
    tried = [
        Spec.parse(f"sgd:lr={lr},momentum={m},nesterov={n}")
        for lr in (0.1, 0.2, 0.4)
        for m in (0.8, 0.9)
        for n in ("true", "false")
    ]
    assert edges({"a": tried}, {"a": tried[0]}) == [
        "a: the best lr, 0.1, is the lowest that was tried; a lower one may be better",
        "a: the best momentum, 0.8, is the lowest that was tried; a lower one may be better",
    ]
    middle = [spec for spec in tried if "momentum=0.8" in spec.label]
    assert edges({"a": tried, "b": middle}, {"a": tried[7], "b": middle[2]}) == [
        "a: the best momentum, 0.9, is the highest that was tried; a higher one may be better"
    ]


def test_the_table_of_what_was_tried():
    metric = Metric("nll", "NLL", lower=True, digits=3, loss=True)
    trials = [
        Trial("sgd", "sgd:lr=1", 1200, (7, 8), (1.0,), None, None),
        Trial("sgd", "sgd:lr=0.1", 1200, (7, 8), (0.5, 0.7), 0.6, 0.6, True),
    ]
    assert tried_table(trials, metric).splitlines() == [
        "|   | tried      | budget | seeds | held-out NLL |",
        "|---|------------|--------|-------|--------------|",
        "|   | sgd:lr=1   | 1,200  | 2     | diverged     |",
        "| * | sgd:lr=0.1 | 1,200  | 2     | 0.600        |",
    ]
