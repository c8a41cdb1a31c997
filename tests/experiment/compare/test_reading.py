from __future__ import annotations

import json

import pytest

from lookaround.errors import UsageError
from lookaround.experiment.folder import saved_experiment
from lookaround.experiment.reading import read_folder
from lookaround.tasks.base import Metric
from reference.experiments import IDENTITY, write_experiment


def test_it_reads_what_an_experiment_left(tmp_path):
    runs = {"sgd": {0: [90.0, 95.0], 2: [91.0]}, "lookaround:k=20": {0: [96.0], 1: None, 2: []}}
    found = read_folder(write_experiment(tmp_path / "a", runs, plain=50.0))
    assert found.identity == IDENTITY
    assert found.metrics == (Metric("top1", "top-1 %", False), Metric("nll", "NLL", True, 4, True))
    assert [(run.label, run.seed) for run in found.runs] == [
        ("sgd", 0),
        ("sgd", 2),
        ("lookaround:k=20", 0),
        ("lookaround:k=20", 2),
    ]
    assert found.unfinished == (tmp_path / "a" / "lookaround,k=20" / "seed-1",)
    first, *_, last = found.runs
    assert (first.metrics, first.diverged) == ({"top1": 95.0, "nll": 0.1}, None)
    assert [(record.spent, record.seconds, record.metrics["top1"]) for record in first.records] == [
        (1500, 1.0, 90.0),
        (3000, 2.0, 95.0),
    ]
    assert first.records[0].plain == {"top1": 50.0, "nll": 1.0}
    assert (last.metrics, last.diverged, last.records) == (None, "the loss is not finite", ())


def test_seeds_are_in_order_of_their_numbers(tmp_path):
    found = read_folder(write_experiment(tmp_path / "a", {"sgd": {10: [1.0], 2: [1.0], 0: [1.0]}}))
    assert [run.seed for run in found.runs] == [0, 2, 10]


def test_a_line_that_a_kill_left_incomplete_is_not_there(tmp_path):
    path = write_experiment(tmp_path / "a", {"sgd": {0: [90.0, 95.0]}})
    records = path / "sgd" / "seed-0" / "metrics.jsonl"
    records.write_bytes(records.read_bytes()[:-10])
    assert len(read_folder(path).runs[0].records) == 1


def test_a_metric_without_a_value_is_left_out(tmp_path):
    path = write_experiment(tmp_path / "a", {"sgd": {0: [90.0]}})
    file = path / "sgd" / "seed-0" / "result.json"
    file.write_text(file.read_text().replace('"nll": 0.2', '"nll": null'))
    assert read_folder(path).runs[0].metrics == {"top1": 90.0}


def test_a_folder_that_holds_no_experiment_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"^there is no folder .*/no; give the --out of lookaround train$"):
        read_folder(tmp_path / "no")
    with pytest.raises(
        UsageError, match=r"holds no experiment of lookaround train: there is no experiment.json in it$"
    ):
        read_folder(tmp_path)


def test_a_folder_of_experiments_says_where_they_are(tmp_path):
    for name in ("rung-1", "result"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "experiment.json").write_text("{}")
    places = rf"; there is one in {tmp_path}/result, {tmp_path}/rung-1$"
    with pytest.raises(UsageError, match=f"no experiment.json in it{places}"):
        read_folder(tmp_path)
    with pytest.raises(UsageError, match=f"experiment.json{places}"):
        saved_experiment(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "Expecting value"),
        (b"\xff\xfe\x00", "can't decode"),
        (b"[]", r"an object is expected, not \[\]"),
        (b"null", "an object is expected, not null"),
        (b"{}", "it has no identity"),
        (b'{"identity": 3, "metrics": []}', "an object is expected, not 3"),
        (b'{"identity": {}, "metrics": []}', "it names no metrics"),
        (b'{"identity": {}, "metrics": [{"name": "x"}]}', "missing 2 required positional arguments"),
        (b'{"identity": {}, "metrics": 7}', "not iterable"),
        (b"[" * 100_000, "recursion"),
    ],
)
def test_a_damaged_description_is_named(tmp_path, content, said):
    path = write_experiment(tmp_path / "a", {"sgd": {0: [90.0]}})
    (path / "experiment.json").write_bytes(content)
    with pytest.raises(
        UsageError, match=rf"experiment.json is damaged or was not written by this lookaround: .*{said}"
    ):
        read_folder(path)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("seed", 1.5, "a whole number is expected, not 1.5"),
        ("seed", True, "a finite number is expected, not true"),
        ("seconds", None, "a finite number is expected, not null"),
        ("budget", float("nan"), "a finite number is expected, not NaN"),
        ("seconds", 10**400, "int too large"),
        ("method", 3, "text is expected, not 3"),
        ("settings", "none", 'an object is expected, not "none"'),
        ("metrics", {"top1": "high", "nll": 0.1}, 'a finite number is expected, not "high"'),
        ("metrics", {"top1": 90.0}, "it has no nll"),
        ("metrics", {"top1": float("inf"), "nll": 0.1}, "a finite number is expected, not Infinity"),
        ("diverged", 1, "text is expected, not 1"),
    ],
)
def test_a_damaged_result_is_named(tmp_path, key, value, said):
    path = write_experiment(tmp_path / "a", {"sgd": {0: [90.0]}})
    file = path / "sgd" / "seed-0" / "result.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(UsageError, match=rf"result.json is damaged .*: .*{said}"):
        read_folder(path)


@pytest.mark.parametrize(
    ("line", "said"),
    [("{", "line 2: Expecting"), ("{}", "line 2: it has no spent"), ("3", "line 2: an object is expected, not 3")],
)
def test_a_damaged_record_is_named_with_its_line(tmp_path, line, said):
    path = write_experiment(tmp_path / "a", {"sgd": {0: [90.0]}})
    with (path / "sgd" / "seed-0" / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UsageError, match=rf"metrics.jsonl is damaged .*: {said}"):
        read_folder(path)
