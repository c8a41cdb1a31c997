from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from lookaround.experiment.plots import save_curves
from lookaround.tasks.base import Metric

METRICS = (Metric("top1", "top-1 %", lower=False), Metric("nll", "NLL", lower=True, loss=True))


def records(*errors: float):
    return [
        {"spent": 3 * (index + 1), "metrics": {"top1": 100 - error, "nll": error / 10}}
        for index, error in enumerate(errors)
    ]


def drawn(tmp_path, monkeypatch, runs, diverged=()) -> Figure:
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, file, **options: (figures.append(self), file.write(b"png")))
    save_curves(tmp_path / "c.png", runs, METRICS, "samples", "a title", diverged)
    assert (tmp_path / "c.png").read_bytes() == b"png"
    return figures[0]


def test_lines_are_means_over_seeds_and_bands_reach_from_least_to_greatest(tmp_path, monkeypatch):
    runs = {
        ("sgd", 0): records(30, 10),
        ("sgd", 1): records(50, 20),
        ("sam", 0): records(8, 4),
        ("sam", 1): records(8, 6),
    }
    errors, nll = drawn(tmp_path, monkeypatch, runs).axes
    assert [line.get_label() for line in errors.lines] == ["sgd", "sam"]
    assert [list(line.get_ydata()) for line in errors.lines] == [[40, 15], [8, 5]]
    assert [list(line.get_xdata()) for line in errors.lines] == [[3, 6], [3, 6]]
    assert list(nll.lines[0].get_ydata()) == pytest.approx([4, 1.5])
    edges = errors.collections[0].get_paths()[0].vertices[:, 1]
    assert (edges.min(), edges.max()) == (10, 50)


def test_one_seed_has_no_band_and_no_error_at_all_can_be_drawn(tmp_path, monkeypatch):
    figure = drawn(tmp_path, monkeypatch, {("sgd", 0): records(5, 0)})
    assert not figure.axes[0].collections
    assert figure.get_suptitle() == "a title"
    assert [axes.get_yscale() for axes in figure.axes] == ["linear", "linear"]
    assert [axes.get_xlabel() for axes in figure.axes] == ["samples", "samples"]


def test_a_run_that_diverged_is_a_dotted_line_to_a_cross(tmp_path, monkeypatch):
    runs = {("sgd", 0): records(30, 10), ("sgd", 1): records(50), ("sgd", 2): records(20, 20)}
    runs |= {("sam", 0): records(8), ("sam", 1): [], ("sam", 2): records(9)}
    diverged = {("sgd", 1), ("sam", 0), ("sam", 1), ("sam", 2)}
    errors, _ = drawn(tmp_path, monkeypatch, runs, diverged).axes
    assert [list(line.get_ydata()) for line in errors.lines] == [[25, 15], [50], [8], [9]]
    assert [line.get_linestyle() for line in errors.lines] == ["-", ":", ":", ":"]
    labels = [text.get_text() for text in errors.get_figure().legends[0].get_texts()]
    assert labels == ["sgd", "sgd (diverged)", "sam (diverged)"]


def test_a_run_that_diverged_does_not_set_the_scale(tmp_path, monkeypatch):
    runs = {("sgd", 0): records(30, 10), ("sam", 0): records(1e17)}
    alone = drawn(tmp_path, monkeypatch, {("sgd", 0): records(30, 10)}).axes[1]
    _, nll = drawn(tmp_path, monkeypatch, runs, {("sam", 0)}).axes
    assert nll.get_ylim() == alone.get_ylim()
    assert [tick for tick in nll.get_yticks() if 1 <= tick <= 3] == [1, 2]


def test_more_methods_than_colours_differ_in_style(tmp_path, monkeypatch):
    methods = tuple(f"m{index}" for index in range(19))
    errors, _ = drawn(tmp_path, monkeypatch, {(method, 0): records(5, 4) for method in methods}).axes
    assert len({(line.get_color(), line.get_linestyle()) for line in errors.lines}) == 19


def test_a_single_point_is_seen(tmp_path, monkeypatch):
    errors, _ = drawn(tmp_path, monkeypatch, {("sgd", 0): records(5)}).axes
    assert errors.lines[0].get_marker() == "o"


def test_it_is_a_picture(tmp_path):
    save_curves(tmp_path / "c.png", {("sgd", 0): records(5, 0)}, METRICS, "samples", "a title")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
