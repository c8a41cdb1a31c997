from __future__ import annotations

import pytest

from lookaround.experiment.compare import against, choose_baseline, curves_figure, differences_figure, merge
from lookaround.experiment.reading import read_folder
from lookaround.tasks.base import Metric
from reference.experiments import write_experiment

TOP1, NLL = Metric("top1", "top-1 %", False), Metric("nll", "NLL", True, 4, True)
BLEU = Metric("bleu", "BLEU", False)


def rows_of(tmp_path, runs, **more):
    return merge([read_folder(write_experiment(tmp_path / "a", runs, **more))])[0]


def labels(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_lines_are_means_and_bands_reach_from_least_to_greatest(tmp_path):
    rows = rows_of(tmp_path, {"sgd": {0: [70.0, 90.0], 1: [50.0, 80.0]}, "sam": {0: [92.0, 96.0], 1: [92.0, 94.0]}})
    figure = curves_figure(rows, [TOP1, NLL], "title")
    error, error_in_time, nll, nll_in_time = figure.axes
    assert [line.get_label() for line in error.lines] == ["sgd", "sam"]
    assert [list(line.get_ydata()) for line in error.lines] == [[40, 15], [8, 5]]
    assert [list(line.get_xdata()) for line in error.lines] == [[1500, 3000]] * 2
    assert list(nll.lines[0].get_ydata()) == pytest.approx([0.8, 0.3])
    band = error.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (10, 50)
    # Seeds were evaluated at 1 and 2 and at 1.1 and 2.1 seconds: common to both are 1.1 to 2.
    assert list(error_in_time.lines[0].get_xdata()) == [1.1, 2.0]
    assert list(error_in_time.lines[0].get_ydata()) == pytest.approx([(28 + 50) / 2, (10 + 23) / 2])
    assert (error.get_ylabel(), nll.get_ylabel()) == ("top-1 error, %", "NLL")
    assert (error.get_xlabel(), nll_in_time.get_xlabel()) == ("samples seen", "wall time, seconds")
    assert labels(figure) == ["sgd", "sam"]


def test_runs_evaluated_once_are_points_in_time_too(tmp_path):
    rows = rows_of(tmp_path, {"sgd": {0: [70.0], 1: [50.0]}})
    _, in_time = curves_figure(rows, [TOP1], "title").axes
    (line,) = in_time.lines
    assert (list(line.get_xdata()), list(line.get_ydata()), line.get_marker()) == ([1.05], [40.0], "o")
    assert [list(part[:, 1]) for part in in_time.collections[0].get_segments()] == [[30.0, 50.0]]


def test_a_run_one_record_short_is_drawn_as_far_as_it_goes(tmp_path):
    rows = rows_of(tmp_path, {"sgd": {0: [70.0, 90.0, 95.0], 1: [50.0, 80.0, 95.0]}})
    file = tmp_path / "a" / "sgd" / "seed-1" / "metrics.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:2]))
    rows = merge([read_folder(tmp_path / "a")])[0]
    (line,) = curves_figure(rows, [TOP1], "", ["spent"]).axes[0].lines
    assert list(line.get_xdata()) == [1000, 2000]


def test_no_error_at_all_is_on_the_axis(tmp_path):
    rows = rows_of(tmp_path, {"sgd": {0: [90.0, 99.0, 100.0]}})
    (panel,) = curves_figure(rows, [TOP1], "", ["spent"]).axes
    assert panel.get_yscale() == "symlog"
    assert panel.get_ylim()[0] == 0
    assert list(panel.lines[0].get_ydata()) == [10, 1, 0]
    assert [tick for tick in panel.get_yticks() if tick <= 10] == [0, 1, 2, 5, 10]
    assert panel.yaxis.get_transform().linthresh == 1


@pytest.mark.parametrize(
    ("metric", "values", "scale"),
    [
        (TOP1, [50.0, 90.0], "log"),
        (TOP1, [50.0, 60.0], "linear"),
        (NLL, [50.0, 90.0], "log"),
        (TOP1, [100.0, 100.0], "linear"),
        (BLEU, [1.0, 40.0], "linear"),
    ],
)
def test_the_scale_suits_what_is_drawn(tmp_path, metric, values, scale):
    rows = rows_of(tmp_path, {"sgd": {0: values}})
    if metric is BLEU:
        rows = [type(row)(row.label, {0: _as_bleu(row.runs[0])}, {}) for row in rows]
    (panel,) = curves_figure(rows, [metric], "", ["spent"]).axes
    assert panel.get_yscale() == scale
    assert (panel.get_ylabel() == "BLEU") == (metric is BLEU)


def _as_bleu(run):
    records = [type(r)(r.spent, r.seconds, {"bleu": r.metrics["top1"]}, None) for r in run.records]
    return type(run)(**{**vars(run), "records": tuple(records)})


def test_weights_as_training_left_them_are_dotted_where_they_differ(tmp_path):
    path = write_experiment(tmp_path / "a", {"sgd": {0: [80.0, 80.0]}, "ema": {0: [90.0, 95.0]}}, plain=80.0)
    figure = curves_figure(merge([read_folder(path)])[0], [TOP1], "", ["spent"])
    drawn = [(line.get_color(), line.get_linestyle(), list(line.get_ydata())) for line in figure.axes[0].lines]
    sgd, ema = "#0072B2", "#E69F00"
    assert [line for line in drawn if line[2]] == [(sgd, "-", [20, 20]), (ema, "-", [10, 5]), (ema, ":", [20, 20])]
    assert labels(figure) == ["sgd", "ema", "weights as training left them"]


def test_a_run_that_diverged_is_a_dotted_line_to_a_cross_and_sets_no_scale(tmp_path):
    alone = curves_figure(rows_of(tmp_path, {"sgd": {0: [70.0, 90.0]}}), [NLL], "", ["spent"]).axes[0].get_ylim()
    path = write_experiment(tmp_path / "b", {"sgd": {0: [70.0, 90.0]}, "sam": {0: [1.0, -1e9]}})
    file = path / "sam" / "seed-0" / "result.json"
    file.write_text(file.read_text().replace('"diverged": null', '"diverged": "x"'))
    figure = curves_figure(merge([read_folder(path)])[0], [NLL], "", ["spent"])
    line = figure.axes[0].lines[-1]
    assert (line.get_linestyle(), line.get_marker(), line.get_markevery()) == (":", "x", [-1])
    assert figure.axes[0].get_ylim() == alone
    assert labels(figure) == ["sgd", "sam (diverged)"]


def test_thirty_five_methods_differ_and_stay_inside_the_picture(tmp_path):
    runs = {f"lookaround:k={index},lr=0.1,momentum=0.95": {0: [50.0, 90.0]} for index in range(35)}
    figure = curves_figure(rows_of(tmp_path, runs), [TOP1], "", ["spent"])
    lines = figure.axes[0].lines
    assert len({(line.get_color(), str(line._unscaled_dash_pattern)) for line in lines}) == 35
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    width, height = figure.get_size_inches() * figure.dpi
    assert box.x0 >= 0
    assert box.x1 <= width
    assert box.y0 >= 0
    panel = figure.axes[0].get_window_extent()
    assert panel.y0 > box.y1
    assert panel.height > 0.6 * 3.4 * figure.dpi
    assert height < 20 * figure.dpi


def test_one_evaluation_is_seen(tmp_path):
    (panel,) = curves_figure(rows_of(tmp_path, {"sgd": {0: [50.0]}}), [TOP1], "", ["spent"]).axes
    assert panel.lines[0].get_marker() == "o"


def test_differences_are_seeds_means_and_intervals(tmp_path):
    runs = {"sgd": {0: [90.0], 1: [91.0], 2: [92.0]}, "ema": {0: [91.0], 1: [92.5], 2: [92.5]}, "one": {1: [80.0]}}
    rows = rows_of(tmp_path, runs)
    base = choose_baseline(rows, None)
    found = {metric: against(rows, base, metric) for metric in (TOP1, NLL)}
    left, right = differences_figure(found, base, 0.95).axes
    ticks = [tick.get_text() for tick in left.get_yticklabels()]
    assert ticks == ["ema", "one"]
    seeds, interval, mean, _, only, zero = left.lines
    assert list(seeds.get_xdata()) == [1.0, 1.5, 0.5]
    assert list(interval.get_xdata()) == pytest.approx([1 - 1.2421, 1 + 1.2421], abs=1e-4)
    assert (list(mean.get_xdata()), list(only.get_xdata())) == ([1.0], [-11.0])
    assert list(zero.get_xdata()) == [0, 0]
    assert left.get_xlabel() == "top-1 %: difference (more is better)"
    assert right.get_xlabel() == "NLL: difference (less is better)"
