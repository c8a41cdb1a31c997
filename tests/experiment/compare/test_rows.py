from __future__ import annotations

import re

import pytest

from lookaround.errors import UsageError
from lookaround.experiment.compare import merge
from lookaround.experiment.reading import read_folder
from reference.experiments import IDENTITY, METRICS, write_experiment

SGD = {0: [90.0], 1: [92.0]}


def merged(*folders):
    return merge([read_folder(folder) for folder in folders])


def test_methods_of_one_setting_pool_their_seeds(tmp_path):
    a = write_experiment(tmp_path / "a", {"sgd": SGD, "ema": {0: [93.0]}})
    b = write_experiment(tmp_path / "b", {"lookaround": {0: [94.0]}, "sgd": {2: [91.0], 7: []}, "ema": {1: None}})
    rows, notes = merged(a, b)
    assert [(row.label, list(row.runs), list(row.diverged)) for row in rows] == [
        ("sgd", [0, 1, 2], [7]),
        ("ema", [0], []),
        ("lookaround", [0], []),
    ]
    top1 = read_folder(a).metrics[0]
    assert rows[0].values(top1) == {0: 90.0, 1: 92.0, 2: 91.0}
    assert notes == [f"{b}: 1 unfinished run is left out"]


def test_rows_of_one_label_say_in_what_they_differ(tmp_path):
    a = write_experiment(tmp_path / "a", {"sgd": SGD}, settings={"sgd": {"lr": 0.1, "momentum": 0.9}})
    b = write_experiment(tmp_path / "b", {"sgd": SGD}, settings={"sgd": {"lr": 0.2, "momentum": 0.9}})
    c = write_experiment(tmp_path / "c", {"sgd": SGD}, settings={"sgd": {"lr": 0.2, "momentum": 0.9}}, budget=6000)
    assert [row.label for row in merged(a, b)[0]] == ["sgd (lr 0.1)", "sgd (lr 0.2)"]
    assert [row.label for row in merged(b, c)[0]] == ["sgd (3,000 samples)", "sgd (6,000 samples)"]
    assert [row.label for row in merged(a, b, c)[0]] == [
        "sgd (lr 0.1, 3,000 samples)",
        "sgd (lr 0.2, 3,000 samples)",
        "sgd (lr 0.2, 6,000 samples)",
    ]


def test_a_run_in_two_folders_counts_once_and_a_disagreement_is_named(tmp_path):
    a = write_experiment(tmp_path / "a", {"sgd": SGD})
    b = write_experiment(tmp_path / "b", {"sgd": {0: [90.0], 1: [92.5]}})
    rows, notes = merged(a, b)
    assert [run.metrics["top1"] for run in rows[0].runs.values()] == [90.0, 92.0]
    assert notes == [f"sgd, seed 1: {a}/sgd/seed-1 and {b}/sgd/seed-1 differ; the first is taken"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"copies": "shared"}, "copies is independent and shared"),
        (
            {"data": {"name": "digits", "digest": "cd"}, "branches": 2},
            "data.digest is ab12 and cd, branches is 3 and 2",
        ),
        ({"size": [1, 8, 8]}, "size is not set and [1, 8, 8]"),
        ({f"x{i}": i for i in range(6)}, "x3 is not set and 3 and 2 more"),
        ({"long": "y" * 100}, f"long is not set and {'y' * 57}..."),
    ],
)
def test_different_tasks_are_refused_with_what_differs(tmp_path, changes, said):
    a = write_experiment(tmp_path / "a", {"sgd": SGD})
    b = write_experiment(tmp_path / "b", {"sgd": SGD}, identity={**IDENTITY, **changes})
    start = f"{a} and {b} train different tasks and cannot be compared: "
    with pytest.raises(UsageError, match=rf"^{re.escape(start)}.*{re.escape(said)}$"):
        merged(a, b)


def test_experiments_of_two_kinds_are_refused_without_a_list_of_all_that_differs(tmp_path):
    a = write_experiment(tmp_path / "a", {"sgd": SGD}, identity={**IDENTITY, "task": "vision"})
    b = write_experiment(tmp_path / "b", {"sgd": SGD}, identity={"task": "language", "window": 35})
    said = f"{a} trains the vision task and {b} the language task; give experiments on one task"
    with pytest.raises(UsageError, match=rf"^{re.escape(said)}$"):
        merged(a, b)


def test_other_metrics_are_another_task(tmp_path):
    a = write_experiment(tmp_path / "a", {"sgd": SGD})
    b = write_experiment(tmp_path / "b", {"sgd": SGD}, metrics=METRICS[:1])
    with pytest.raises(UsageError, match=r"cannot be compared: their metrics$"):
        merged(a, b)


def test_nothing_that_has_ended_is_refused(tmp_path):
    a = write_experiment(tmp_path / "a", {"sgd": {0: None}})
    with pytest.raises(UsageError, match=r"^no run in .*/a has ended yet; there is nothing to compare$"):
        merged(a)
