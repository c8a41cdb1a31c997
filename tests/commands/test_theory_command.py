"""``lookaround theory``: figures, their list, and advice for a real run."""

from __future__ import annotations

import csv
import re

import pytest

from lookaround.cli import main
from lookaround.theory.figures import FIGURES


def test_figures_are_drawn_and_named(tmp_path, capsys):
    assert main(["theory", "lookahead-4", "lookaround-2", "lookahead-4", "--out", str(tmp_path / "figures")]) == 0
    files = capsys.readouterr().out.splitlines()
    names = [f"{name}.{kind}" for name in ("lookahead-4", "lookaround-2") for kind in ("png", "svg", "csv")]
    assert files == [str(tmp_path / "figures" / name) for name in names]
    with open(files[-1], encoding="utf-8") as file:
        methods = {row["method"] for row in csv.DictReader(file)}
    assert methods == {"bound", "momentum", "lookahead", "lookaround"}


def test_all_means_every_figure_of_the_registry(tmp_path, capsys, monkeypatch):
    for name in FIGURES:
        monkeypatch.setitem(FIGURES, name, lambda folder, name=name: [folder / name])
    assert main(["theory", "all", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / name) for name in FIGURES]


def test_the_list_says_what_each_figure_is(capsys):
    assert main(["theory", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(FIGURES)
    assert "Figure 12" in lines[list(FIGURES).index("lookahead-12")]


def rows(printed: str) -> dict[str, list[float]]:
    """The numbers of each line of the table, by its method and settings."""
    found = {}
    for line in printed.splitlines():
        match = re.fullmatch(r"((?:sgd|lookahead|lookaround)\b.*?) {2,}(\d.*)", line)
        if match and "," not in match[1]:
            found[match[1]] = [float(number) for number in match[2].split()]
    return found


ADVICE = ["--device", "cpu", "--images", "100", "--minibatches", "6", "--directions", "3"]


def test_advice_predicts_and_measures_every_candidate(runs, capsys):
    assert main(["theory", "advice", runs["sgd"], *ADVICE, "--lr", "0.005", "--steps", "80"]) == 0
    printed = capsys.readouterr().out
    assert "sgd:batch=20, seed 0: learning rate 0.005, momentum 0.9, minibatches of 20 images" in printed
    table = rows(printed)
    assert len(table) == 7
    assert all(len(numbers) == 5 for numbers in table.values())
    assert table["sgd"][2] == table["sgd"][4] == 1.0
    assert table["lookaround k=5 d=3 α=1"][2] == pytest.approx(1 / 3, abs=1e-3)
    assert all(numbers[3] > 0 for numbers in table.values())


def test_advice_leaves_the_run_as_it_is_and_repeats_itself(runs, capsys):
    words = ["theory", "advice", f"{runs['lookahead']}/model.safetensors", *ADVICE, "--lr", "0.005", "--steps", "80"]
    assert main(words) == 0
    first = capsys.readouterr().out
    assert main(words) == 0
    assert capsys.readouterr().out == first


def test_advice_without_real_runs(runs, capsys):
    assert main(["theory", "advice", runs["sgd"], *ADVICE, "--momentum", "0", "--lr", "0.001", "--steps", "0"]) == 0
    assert all(len(numbers) == 3 for numbers in rows(capsys.readouterr().out).values())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no figure named; choose from lookahead-3, lookahead-4,"),
        (["lookahead-5"], "unknown figure 'lookahead-5'; choose from lookahead-3"),
        (["advice"], "Missing from lookaround theory advice: RUN"),
        (["advice", "no/such"], "there is no no/such; give a run's folder"),
        (["advice", "{sgd}", *ADVICE, "--lr", "1000"], "lr must be below 2(1 + momentum)/L"),
        (["advice", "{sgd}", "--lr", "0"], "lr must be above 0, got 0.0"),
        (["advice", "{sgd}", "--minibatches", "1"], "minibatches must be at least 2, got 1"),
        (["advice", "{sgd}", "--steps", "30"], "steps must be 0 or at least 80, got 30"),
        (["advice", "{sgd}", "--threads", "0"], "threads must be at least 1, got 0"),
        (["advice", "{sgd}", "--lr", "fast"], "Error parsing --lr"),
    ],
)
def test_bad_input_is_one_line(runs, refused, words, said):
    assert said in refused("theory", *(word.format(**runs) for word in words))


def test_a_file_in_the_place_of_the_folder(tmp_path, refused):
    (tmp_path / "file").touch()
    assert "is a file; choose a folder for --out" in refused("theory", "lookahead-4", "--out", str(tmp_path / "file"))
