"""Tables of the map: means, paired differences, Holm's correction over a whole table, the best schedule, and what is written."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from map_figures import best_schedule, main
from paired_tables import corrected, head, line, read, rows_of, runs

SEEDS = range(4)
# Shifts of NLL against the baseline by seed: p of a paired t test by hand: mean / (std / 2) with three degrees of freedom.
SHIFTS = {"sgd": (0.0,) * 4, "swa": (-0.1, -0.1, -0.1, -0.14), "ema": (0.1, -0.1, 0.1, -0.1)}


def written(path: Path, names: list[str], rows: list[list[object]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([names, *rows])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files as the studies write them, of two conditions and two budgets."""
    settings = ["condition", "budget", "row", "momentum", "rate"]
    metrics = ["top1", "nll", "ece"]
    ends, way, tried = [], [], []
    for condition in ("clean", "noise"):
        for budget in (30, 300):
            for name, shifts in SHIFTS.items():
                key = [condition, budget, name, 0.9, 0.8]
                values = [[90 + seed, 1 + 0.1 * seed + shifts[seed], 2.0] for seed in SEEDS]
                ends += [[*key, seed, *values[seed]] for seed in SEEDS]
                way += [[*key, seed, at, *values[seed]] for seed in SEEDS for at in (budget // 2, budget)]
                tried += [[*key[:4], rate, 90, 1.0, 2] for rate in (0.4, 0.8, 1.6)]
            tried += [[condition, budget, "sgd:schedule=wsd", 0.5, 0.4, 90, 2.0 if budget == 30 else 0.5, 2]]
    for name in ("map", "orderings"):
        written(tmp_path / f"{name}.csv", [*settings, "seed", *metrics], ends)
        written(tmp_path / f"{name}-tried.csv", [*settings, *metrics], tried)
    written(tmp_path / "map-way.csv", [*settings, "seed", "gradients", *metrics], way)
    return tmp_path


def test_a_row_is_its_means_and_its_paired_differences_corrected_for_the_whole_table(folder):
    sgd, swa, ema = corrected(rows_of(runs(folder / "map.csv")["clean", 30], ("sgd",)))
    assert line(sgd) == "| sgd | 0.9, 0.8 | 91.50 ± 1.29 | 1.1500 ± 0.1291 | 2.00 ± 0.00 |  |  |  |  |"
    # mean -0.11, standard deviation 0.02, t = -11 with 3 degrees of freedom: p = 0.0016, twice that after Holm.
    cells = line(swa).split(" | ")
    assert cells[5:] == ["+0.00 ± 0.00", "**-0.1100 ± 0.0318**", "0.003", "4 of 4 |"]
    assert line(ema).split(" | ")[6:] == ["+0.0000 ± 0.1837", "1.000", "2 of 4 |"]
    assert len(head(("sgd",))[0].split("|")) == len(line(sgd).split("|"))


def test_a_gain_is_bold_only_where_it_stands_after_correction(folder):
    lines = runs(folder / "map.csv")["clean", 30]
    many = {"sgd": lines["sgd"], **{f"swa {n}": lines["swa"] for n in range(40)}}
    found = corrected(rows_of(many, ("sgd",)))
    assert all(row.against[0].p == pytest.approx(40 * 0.00161, rel=0.01) for row in found[1:])
    assert "**" not in line(found[1])


def test_a_row_has_a_difference_to_each_baseline_but_itself(folder):
    lines = runs(folder / "map.csv")["clean", 30]
    for row in rows_of(lines, ("sgd", "swa", "nobody")):
        assert [one is None for one in row.against] == [row.name == "sgd", row.name == "swa", True]


def test_the_best_schedule_is_chosen_by_held_out_loss(folder):
    tried = read(folder / "map-tried.csv")
    assert [best_schedule(tried, "clean", budget) for budget in (30, 300)] == ["sgd", "sgd:schedule=wsd"]


def test_everything_is_written_from_the_files_alone(folder, monkeypatch):
    monkeypatch.setattr("sys.argv", ["map_figures.py", str(folder)])
    rest = (folder / "map.csv").read_text()
    (folder / "map.csv").write_text(rest + rest.partition("\n")[2].replace(",sgd,", ",sgd:schedule=wsd,"))
    main()
    text = (folder / "map.md").read_text()
    assert "held-out images choose sgd:schedule=wsd:" in text
    assert text.count("| swa | 0.9, 0.8 |") == 4
    assert "| Digits, right labels, independent copies | 30 | swa | swa | none |" in text
    assert "## Digits, right labels, shared copies" not in text
    for name in ("map-clean.png", "map-noise.png", "map-curves.png", "map-rates.png", "map-summary.png"):
        assert (folder / name).stat().st_size > 5000
    assert "| swa |" in (folder / "orderings.md").read_text()
