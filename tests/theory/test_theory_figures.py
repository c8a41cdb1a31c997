"""The figures' files, and the numbers in them: what the curves must say is read back from the CSV."""

import csv
import xml.etree.ElementTree as ElementTree
from functools import partial
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib")
from PIL import Image

from lookaround.theory import chebyshev_spectrum, convergence_rate, expected_loss, lower_bound, steady_state_loss
from lookaround.theory.equivalence_figure import lookaround_rate
from lookaround.theory.figure_files import write_figure
from lookaround.theory.figures import FIGURES
from lookaround.theory.progress_figures import lookahead_3, lookahead_11a, lookahead_11b, lookahead_12
from lookaround.theory.variance_figure import lookaround_variance

SMALL = chebyshev_spectrum(60, 1e3)
QUICK = FIGURES | {
    "lookahead-3": partial(lookahead_3, spectrum=SMALL),
    "lookahead-11a": partial(lookahead_11a, spectrum=SMALL),
    "lookahead-11b": partial(lookahead_11b, spectrum=SMALL),
    "lookahead-12": partial(lookahead_12, spectrum=SMALL),
    "lookaround-rate": partial(lookaround_rate, chains=50, passes=200),
    "lookaround-variance": partial(lookaround_variance, chains=3000, confidence=1 - 1e-5),
}


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """All figures, drawn once, into a folder that does not exist before."""
    target = tmp_path_factory.mktemp("figures") / "new"
    for draw in QUICK.values():
        draw(target)
    return target


@pytest.mark.parametrize("name", list(FIGURES))
def test_three_files_of_each_that_open(folder, name):
    with Image.open(folder / f"{name}.png") as image:
        assert image.width > 800
        assert len(image.convert("RGB").getcolors(1 << 24)) > 10
    drawing = ElementTree.parse(folder / f"{name}.svg").getroot()
    assert drawing.tag.endswith("svg")
    assert len([element for element in drawing.iter() if element.tag.endswith("}text")]) > 10
    assert len(read(folder / f"{name}.csv")) > 20


def test_nothing_else_is_left_in_the_folder(folder):
    expected = {f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg", "csv")}
    assert {path.name for path in folder.iterdir()} == expected


def test_the_same_numbers_give_the_same_files(folder, tmp_path):
    QUICK["lookahead-11a"](tmp_path)
    for kind in ("svg", "csv"):
        assert (tmp_path / f"lookahead-11a.{kind}").read_bytes() == (folder / f"lookahead-11a.{kind}").read_bytes()


def test_figure_3_holds_final_losses_and_distances(folder):
    rows = read(folder / "lookahead-3.csv")
    assert len(rows) == 200 + 100 * 200
    for row in rows[:: len(rows) // 7]:
        setting = (row["method"], SMALL, 1 / SMALL, float(row["lr"]))
        final = steady_state_loss(*setting, k=5, alpha=float(row["alpha"]), excess=True).item()
        reached = expected_loss(*setting, steps=1000, k=5, alpha=float(row["alpha"]), excess=True).item()
        assert float(row["final_excess_loss"]) == pytest.approx(final, rel=1e-6)
        assert float(row["distance_after_1000_steps"]) == pytest.approx(abs(reached - final), rel=1e-4)


def test_figure_12_lookahead_is_nowhere_behind_sgd_and_ahead_at_long_horizons(folder):
    rows = read(folder / "lookahead-12.csv")
    best = {
        method: [float(r["best_excess_loss"]) for r in rows if r["method"] == method] for method in ("sgd", "lookahead")
    }
    horizons = [float(row["horizon"]) for row in rows if row["method"] == "sgd"]
    for horizon, sgd, lookahead in zip(horizons, best["sgd"], best["lookahead"], strict=True):
        assert lookahead <= sgd * (1 + 1e-12)
        if horizon > 100:
            assert lookahead < sgd
    last = rows[-1]
    loss = expected_loss(
        "lookahead", SMALL, 1 / SMALL, float(last["lr"]), steps=horizons[-1], alpha=float(last["alpha"]), excess=True
    )
    assert loss.item() == pytest.approx(float(last["best_excess_loss"]), rel=1e-6)


def test_figure_2_keeps_below_the_bound_and_repeats_the_rates(folder):
    rows = read(folder / "lookaround-2.csv")
    assert {row["method"] for row in rows} == {"bound", "momentum", "lookahead", "lookaround"}
    assert float(rows[0]["condition_number"]) == 10
    assert float(rows[-1]["condition_number"]) == 1e7
    for row in rows[::29]:
        kappa, gain = float(row["condition_number"]), float(row["one_minus_rho"])
        assert gain <= (1 - lower_bound(kappa).item()) * (1 + 1e-9)
        if row["method"] != "bound":
            rate = convergence_rate(row["method"], [1 / kappa, 1.0], float(row["lr_times_L"]), 0.99, k=20, alpha=0.5)
            assert gain == pytest.approx(1 - rate.item(), rel=1e-4)


def test_the_variance_figure_decides(folder):
    rows = read(folder / "lookaround-variance.csv")
    curves = {
        source: {float(r["rounds"]): float(r["variance"]) for r in rows if r["source"] == source}
        for source in ("exact", "printed")
    }
    measured = [row for row in rows if row["source"] == "measured"]
    for row in measured:
        distance = abs(float(row["variance"]) - curves["exact"][float(row["rounds"])])
        assert distance <= float(row["half_width"])
    late = [row for row in measured if float(row["rounds"]) > 20]
    for row in late:
        assert float(row["variance"]) - curves["printed"][float(row["rounds"])] > 5 * float(row["half_width"])


def test_a_failed_write_leaves_no_file_and_keeps_the_old_one(tmp_path):
    class Broken:
        def savefig(self, file, **options):
            file.write(b"half")
            raise OSError("disk full")

    (tmp_path / "x.png").write_bytes(b"old")
    with pytest.raises(OSError, match="disk full"):
        write_figure(tmp_path, "x", Broken(), ("a",), [])
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x.png", b"old")]


def test_no_window_toolkit_and_no_global_figure(folder):
    import sys

    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []
    assert torch.get_default_dtype() == torch.float32
