"""``lookaround compare`` as a user meets it."""

from __future__ import annotations

import csv
import re
import xml.etree.ElementTree as ET

import pytest
from PIL import Image

from lookaround.cli import main
from reference.experiments import IDENTITY, write_experiment

RUNS = {
    "sgd": {0: [80.0, 90.0], 1: [81.0, 91.0], 2: [82.0, 92.0]},
    "ema": {0: [90.0, 93.0], 1: [91.0, 94.5], 2: [92.0, 94.5]},
    "lookaround:k=20": {0: [70.0, 89.0], 1: [70.0, 92.0], 2: []},
}
FILES = ["comparison.csv", "comparison.md", "comparison.tex", "curves.png", "curves.svg"]
FILES += ["differences.png", "differences.svg", "runs.csv"]


@pytest.fixture
def folders(tmp_path):
    a = write_experiment(tmp_path / "a", RUNS)
    b = write_experiment(tmp_path / "b", {"sgd": {3: [83.0, 93.0]}, "ema": {3: [93.0, 96.0], 4: None}})
    return a, b


def snapshot(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def compared(folders, tmp_path, capsys):
    out = tmp_path / "out"
    before = [snapshot(folder) for folder in folders]
    assert main(["compare", *map(str, folders), "--out", str(out)]) == 0
    assert [snapshot(folder) for folder in folders] == before
    return out, capsys.readouterr().out


def test_it_prints_what_is_found_within_80_columns(compared, tmp_path):
    out, printed = compared
    tables = printed[: printed.index(str(out))]
    assert max(map(len, tables.splitlines())) <= 80
    assert re.search(r"sgd +4 +91\.50 ± 1\.29 +0\.1700 ± 0\.0258 +3,000 +1", printed)
    assert re.search(r"lookaround:k=20 +2 of 3 +90\.50 ± 2\.12", printed)
    # Differences 3, 3.5, 2.5 and 3: mean 3, standard error √(1/6) / 2, t(0.975, 3) = 3.18245.
    assert re.search(r"ema +4 +\+3\.00 +\+2\.35 to \+3\.65 +0\.001 +4/0/0 +0\.250", printed)
    assert re.search(r"lookaround:k=20 +2 +\+0\.00 +-12\.71 to \+12\.71 +1\.000 +1/1/0 +1\.000", printed)
    assert "better than sgd: ema\nnot told apart from sgd: lookaround:k=20" in printed
    assert f"{tmp_path / 'b'}: 1 unfinished run is left out" in " ".join(printed.split("\n"))
    assert printed.splitlines()[-len(FILES) :] == [str(out / name) for name in printed_order()]


def printed_order():
    texts = ["comparison.md", "comparison.tex", "comparison.csv", "runs.csv"]
    return [*texts, "curves.png", "curves.svg", "differences.png", "differences.svg"]


def test_it_writes_tables_and_pictures(compared):
    out, _ = compared
    assert sorted(path.name for path in out.iterdir()) == FILES
    text = (out / "comparison.md").read_text()
    assert "| ema             |      4 | 94.50 ± 1.22 | 0.1100 ± 0.0245 |   3,000 |      1 | 11.5 ± 1.3 |" in text
    assert "| ema             |  4 |      +3.00 |   +2.35 to +3.65 | 0.001 | 4/0/0 |   0.250 |" in text
    assert (
        r"ema & 4 & 94.50 $\pm$ 1.22 & 0.1100 $\pm$ 0.0245 & 3,000 & 1 & 11.5 $\pm$ 1.3 \\"
        in (out / "comparison.tex").read_text()
    )
    for name in ("curves", "differences"):
        with Image.open(out / f"{name}.png") as picture:
            assert picture.size[0] > 500
        root = ET.parse(out / f"{name}.svg").getroot()
        words = " ".join(root.itertext())
        assert "ema" in words
        assert "lookaround:k=20" in words


def test_the_numbers_are_exact(compared):
    out, _ = compared
    with (out / "comparison.csv").open() as file:
        lines = {(line["method"], line["metric"]): line for line in csv.DictReader(file)}
    assert len(lines) == 6
    ema = lines["ema", "top1"]
    assert (float(ema["mean"]), float(ema["difference"]), ema["n"], ema["better"]) == (94.5, 3.0, "4", "4")
    assert float(ema["low"]) == pytest.approx(3 - 3.182446305284263 * (1 / 6) ** 0.5 / 2)
    assert (lines["sgd", "nll"]["n"], lines["sgd", "nll"]["verdict"]) == ("", "")
    with (out / "runs.csv").open() as file:
        runs = list(csv.DictReader(file))
    assert len(runs) == 11
    assert [run["diverged"] for run in runs if run["method"] == "lookaround:k=20"] == ["", "", "the loss is not finite"]


def test_the_same_folders_give_the_same_files(compared, folders, tmp_path):
    out, _ = compared
    assert main(["compare", *map(str, folders), "--out", str(tmp_path / "again")]) == 0
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes(), name


def test_baseline_metric_confidence_and_correction_can_be_chosen(folders, tmp_path, capsys):
    words = ["--baseline", "ema", "--metrics", "nll", "--confidence", "0.9", "--correction", "none"]
    assert main(["compare", str(folders[0]), *words, "--out", str(tmp_path / "out")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "NLL minus that of ema on the same seed (less is better)" in printed
    assert "90 % interval" in printed
    assert "p values as they are" in printed
    assert "top-1" not in printed


def test_one_method_alone_has_results_and_no_differences(tmp_path, capsys):
    path = write_experiment(tmp_path / "a", {"sgd": {0: [90.0]}})
    assert main(["compare", str(path), "--out", str(tmp_path / "out")]) == 0
    assert "differences" not in capsys.readouterr().out
    assert not (tmp_path / "out" / "differences.png").exists()


def test_other_tasks_are_refused_and_nothing_is_written(folders, tmp_path, refused):
    other = write_experiment(tmp_path / "c", RUNS, identity={**IDENTITY, "copies": "shared"})
    said = refused("compare", str(folders[0]), str(other), "--out", str(tmp_path / "out"))
    assert (
        said
        == f"{folders[0]} and {other} train different tasks and cannot be compared: copies is independent and shared"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing to compare; give the folders of experiments"),
        (["{a}", "{a}/../a"], "{a}/../a is given twice; give each experiment once"),
        (["{a}/no"], "there is no folder {a}/no"),
        (["{a}/sgd"], "{a}/sgd holds no experiment"),
        (["{a}/experiment.json"], "there is no folder {a}/experiment.json"),
        (
            ["{a}", "--baseline", "adam"],
            "there is no method 'adam' to compare with; choose from sgd, ema, lookaround:k=20",
        ),
        (["{a}", "--metrics", "bleu"], "there is no metric 'bleu'; choose from top1, nll"),
        (["{a}", "--confidence", "95"], "confidence must be between 0 and 1, got 95.0"),
        (["{a}", "--confidence", "nan"], "confidence must be between 0 and 1, got nan"),
        (["{a}", "--confidence", "high"], ""),
        (["{a}", "--correction", "tukey"], ""),
        (["{a}", "--no-such-option"], ""),
        (["{a}", "--out", "{a}"], "{a} holds an experiment; choose another folder for --out"),
        (["{a}", "--out", "{a}/experiment.json"], "{a}/experiment.json is a file; choose a folder for --out"),
    ],
)
def test_bad_input_is_one_line(folders, refused, words, said):
    before = snapshot(folders[0])
    assert said.format(a=folders[0]) in refused("compare", *(word.format(a=folders[0]) for word in words))
    assert snapshot(folders[0]) == before
