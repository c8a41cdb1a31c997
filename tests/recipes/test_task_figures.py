"""Tasks at several budgets: what `tune` and `train` leave is gathered into files, and those become tables and pictures."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from paired_tables import read
from task_figures import LANGUAGE, PHOTOGRAPHS, TRANSLATION, best_control, write
from tuned_runs import common, gather, merged, row_and_rate

from lookaround.cli import main
from lookaround.experiment.reading import read_folder

LOSSES = {
    "adamw": [5.0, 5.1, 5.2, 5.3],
    "adamw:batch=1/d": [4.9, 5.0, 5.1, 5.4],
    "ema": [4.89, 4.99, 5.09, 5.15],  # adamw's less 0.11, but for 0.15 once
}


def _file(path: Path, names: list[str], rows: list[list[object]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([names, *rows])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two budgets of the language model and one of the translation; the highest rate of EMA is its best."""
    ends = [
        [budget, row, 0.1, seed, 100 + seed, 1.5, loss, budget, 9]
        for budget in (3000, 12000)
        for row, losses in LOSSES.items()
        for seed, loss in enumerate(losses)
    ]
    tried = [
        [budget, row, rate, "1000", "perplexity", held]
        for budget in (3000, 12000)
        for row, best in (("adamw", 7.0), ("adamw:batch=1/d", 6.0 if budget == 3000 else 8.0), ("ema", 5.0))
        for rate, held in ((0.05, best + 1), (0.1, best), *([] if row == "ema" else [(0.2, "")]))
    ]
    metrics = ["perplexity", "bits_per_byte", "loss"]
    _file(tmp_path / "language.csv", ["budget", "row", "lr", "seed", *metrics, "tokens", "gradients"], ends)
    _file(tmp_path / "language-tried.csv", ["budget", "row", "lr", "seeds", "by", "held_out"], tried)
    pairs = [
        [500, row, 0.1, seed, 5.0 + seed, 20.0, 4.0, 500, 9]
        for row in ("adamw:batch=500", "ema:batch=500")
        for seed in range(3)
    ]
    _file(
        tmp_path / "translation.csv",
        ["budget", "row", "lr", "seed", "bleu", "chrf", "loss", "tokens", "gradients"],
        pairs,
    )
    _file(
        tmp_path / "translation-tried.csv",
        ["budget", "row", "lr", "seeds", "by", "held_out"],
        [
            [500, row, rate, "1000", "loss", 4.0]
            for row in ("adamw:batch=500", "ema:batch=500")
            for rate in (0.05, 0.1, 0.2)
        ],
    )
    return tmp_path


def test_a_row_is_held_against_adamw_and_against_the_variant_that_held_out_data_choose(folder: Path) -> None:
    write(LANGUAGE, folder)
    lines = (folder / "language.md").read_text().splitlines()
    assert lines.count("3,000 tokens; of AdamW's variants held-out data choose adamw:batch=1/d:") == 1
    assert lines.count("12,000 tokens; of AdamW's variants held-out data choose adamw:") == 1
    short, long = (line.split(" | ") for line in lines if line.startswith("| ema | 0.1"))
    # Against AdamW -0.11, -0.11, -0.11, -0.15: mean -0.12, deviation 0.02, t = -12 with three degrees of freedom, p = 0.00125;
    # four comparisons in all (two methods, two budgets), of which Holm takes the two equal p values first, each times four.
    assert short[1:9] == [
        *("0.1 ↑", "101.5 ± 1.3", "1.5000 ± 0.0000", "5.0300 ± 0.1143", "+0.0 ± 0.0"),
        *("**-0.1200 ± 0.0318**", "0.005", "4 of 4"),
    ]
    # Against the variant -0.01, -0.01, -0.01, -0.25: mean -0.07, deviation 0.12.
    assert short[9] == "-0.0700 ± 0.1909"
    assert long[9] == "**-0.1200 ± 0.0318**"
    assert "| method | 3,000 tokens | 12,000 tokens |" in lines
    assert "| adamw | 5.1500 ± 0.1291 | 5.1500 ± 0.1291 |" in lines
    assert "| ema | **-0.1200 ± 0.0318** (0.005) | **-0.1200 ± 0.0318** (0.005) |" in lines
    assert all(line.startswith("| adamw | 0.1 | ") for line in lines if line.startswith("| adamw | 0"))


def test_only_variants_that_were_trained_at_the_budget_are_controls() -> None:
    trials = [
        {"budget": "9", "row": "adamw", "held_out": "3"},
        {"budget": "9", "row": "adamw:batch=1/d", "held_out": "2"},
        {"budget": "9", "row": "adamw:betas=0.6/0.999", "held_out": ""},
        {"budget": "9", "row": "ema", "held_out": "1"},
        {"budget": "8", "row": "adamw", "held_out": "0"},
    ]
    rows = ["adamw", "adamw:batch=1/d", "ema"]
    assert best_control(LANGUAGE, trials, 9, dict.fromkeys(rows)) == "adamw:batch=1/d"
    assert best_control(LANGUAGE, trials, 9, {"adamw": None}) == "adamw"


def test_both_tasks_get_a_page_and_a_picture(folder: Path) -> None:
    for task in (LANGUAGE, TRANSLATION):
        write(task, folder)
        assert f"![{task.title}]({task.name}.png)" in (folder / f"{task.name}.md").read_text()
        assert (folder / f"{task.name}.png").stat().st_size > 5000
    equal = next(line for line in (folder / "translation.md").read_text().splitlines() if "| ema:batch=500 | 0" in line)
    assert equal.split(" | ")[5:9] == ["+0.00 ± 0.00", "+0.0000 ± 0.0000", "1.000", "0 of 3"]


def test_a_row_of_a_file_is_the_method_less_what_was_tuned_or_given_to_all() -> None:
    long = "adamw:betas=0.6/0.999,lr=0.02,warmup=0.1,schedule=cosine"
    assert row_and_rate(long, common([long])) == {"row": "adamw:betas=0.6/0.999", "lr": "0.02"}
    assert row_and_rate(long, common([long, "ema:lr=0.5"]))["row"] == "adamw:betas=0.6/0.999,schedule=cosine"
    assert row_and_rate("ema:lr=0.5", common([long, "ema:lr=0.5"])) == {"row": "ema", "lr": "0.5"}


def test_rows_are_written_anew_where_they_are_held_and_budgets_rise(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    merged(path, [{"budget": 100, "row": "b", "loss": 1}, {"budget": 100, "row": "a", "loss": 2}], ("budget", "row"))
    merged(path, [{"budget": 20, "row": "a", "loss": 3}, {"budget": 100, "row": "b", "loss": 4}], ("budget", "row"))
    assert path.read_text() == "budget,row,loss\n20,a,3\n100,b,4\n100,a,2\n"


def test_what_tune_and_train_left_is_gathered(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for part in ("train", "valid", "test"):
        (data / f"{part}.txt").write_text("one two three\nthree two one\n" * 40)
    words = f"--task language --root {data} --width 4 --layers 1 --window 4 --all batch=2 --budget 72".split()
    tuned, trained, out = tmp_path / "tuned", tmp_path / "trained", tmp_path / "results"
    out.mkdir()
    methods = ["--methods", "adamw", "lookahead:k=2"]
    assert main(["tune", *words, *methods, "--grid", "lr=0.01,0.1", "--seeds", "0", "1", "--out", str(tuned)]) == 0
    chosen = [line["lr"] for line in read_chosen(tuned)]
    more = ["--methods", f"adamw:lr={chosen[0]}", "--seeds", "1", "2", "--out", str(trained)]
    assert main(["train", *words, *more]) == 0
    for folder in (tuned, trained):
        gather(folder, out)
    rows = read(out / "language.csv")
    assert [(r["budget"], r["row"], r["lr"], r["seed"]) for r in rows] == [
        *(("72", "adamw:batch=2", chosen[0], seed) for seed in "01"),
        *(("72", "lookahead:k=2,batch=2", chosen[1], seed) for seed in "01"),
        ("72", "adamw:batch=2", chosen[0], "2"),
    ]
    assert {r["tokens"] for r in rows} == {"72"}
    assert [r["held_out"] == "" for r in read(out / "language-tried.csv")] == [False] * 4


def read_chosen(tuned: Path) -> list[dict[str, str]]:
    """The rates of the result's methods, in their order."""
    labels = dict.fromkeys(run.label for run in read_folder(tuned / "result").runs)
    return [row_and_rate(label, common(labels)) for label in labels]


def test_photographs_are_held_against_sgd_by_their_nll(tmp_path: Path) -> None:
    rows = [("sgd:batch=32", 2.0), ("sgd:batch=32,schedule=wsd", 1.5), ("ema:batch=32", 1.25)]
    ends = [[90, row, 0.1, seed, 30 + seed, nll + seed, 4.0, 90, 3] for row, nll in rows for seed in range(3)]
    ends[-1][5] = (
        3.2  # EMA's differences to SGD: -0.75, -0.75 and -0.8; their deviation is 0.02887, Student's factor 4.303
    )
    names = ["budget", "row", "lr", "seed", "top1", "nll", "ece", "samples", "gradients"]
    _file(tmp_path / "photographs.csv", names, ends)
    tried = [[90, row, rate, "1000", "nll", nll] for row, nll in rows for rate in (0.1, 0.2)]
    _file(tmp_path / "photographs-tried.csv", ["budget", "row", "lr", "seeds", "by", "held_out"], tried)
    write(PHOTOGRAPHS, tmp_path)
    lines = (tmp_path / "photographs.md").read_text().splitlines()
    assert "| method | 90 samples |" in lines
    assert "| sgd:batch=32 | 3.0000 ± 1.0000 |" in lines
    assert "90 samples; of SGD's variants held-out data choose sgd:batch=32,schedule=wsd:" in lines
    (against,) = [line.split(" | ") for line in lines if line.startswith("| ema:batch=32 | 0.1")]
    assert against[6] == "**-0.7667 ± 0.0717**"
    assert against[9] == "**-0.2667 ± 0.0717**"
