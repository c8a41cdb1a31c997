from __future__ import annotations

import math
from dataclasses import replace

from lookaround.experiment.results import Result
from lookaround.experiment.summary import Spread, summarize, table_cells
from lookaround.experiment.tables import markdown
from lookaround.tasks.base import Metric

METRICS = (Metric("top1", "top-1 %", lower=False), Metric("nll", "NLL", lower=True, digits=4, loss=True))
SGD = Result("sgd", {}, 0, "id", "test", {"top1": 97.0, "nll": 0.1}, None, "samples", 9000, 8990, 3000, 1, 10.0)
SAM = replace(SGD, method="sam:rho=0.1", metrics={"top1": 98.5, "nll": 0.08}, gradient_evaluations=6000, seconds=21.0)


def table(rows, metrics, unit):
    return markdown(*table_cells(rows, metrics, unit))


LOST = replace(SGD, metrics=None, diverged="why", gradient_evaluations=7, spent=21, seconds=1.0)


def test_a_row_is_mean_and_sample_deviation_over_the_seeds():
    results = [SGD, SAM, replace(SGD, seed=1, metrics={"top1": 98.0, "nll": 0.3}), replace(SAM, seed=1)]
    sgd, sam = summarize(results)
    assert (sgd.method, sgd.seeds, sgd.gradient_evaluations, sgd.spent) == ("sgd", 2, 3000, 8990)
    assert sgd.metrics["top1"] == Spread(97.5, math.sqrt(0.5))
    assert sgd.metrics["nll"].mean == 0.2
    assert (sam.method, sam.metrics["top1"].std) == ("sam:rho=0.1", 0.0)


def test_the_table_is_markdown_and_aligned():
    results = [SGD, replace(SGD, seed=1, metrics={"top1": 98.0, "nll": 0.1}), SAM, replace(SAM, seed=1)]
    assert table(summarize(results), METRICS, "samples").splitlines() == [
        "| method      |      top-1 % |             NLL | samples |    seconds |",
        "| ----------- | -----------: | --------------: | ------: | ---------: |",
        "| sgd         | 97.50 ± 0.71 | 0.1000 ± 0.0000 |   8,990 | 10.0 ± 0.0 |",
        "| sam:rho=0.1 | 98.50 ± 0.00 | 0.0800 ± 0.0000 |   8,990 | 21.0 ± 0.0 |",
    ]


def test_an_ensembles_cost_in_inference_is_shown():
    rows = summarize([SGD, replace(SAM, forward_passes=3)])
    assert [line.split("|")[5].strip() for line in table(rows, METRICS, "tokens").splitlines()] == [
        "I-budget",
        "-------:",
        "1",
        "3",
    ]


def test_what_diverged_is_counted_beside_the_numbers_of_the_rest():
    ends = [replace(LOST, seed=1), SGD, replace(LOST, method="sam"), replace(SGD, seed=2)]
    sgd, sam = rows = summarize(ends)
    assert (sgd.seeds, sgd.diverged, sgd.metrics["top1"], sgd.spent) == (2, 1, Spread(97.0, 0.0), 8990)
    assert (sam.seeds, sam.diverged, sam.metrics, sam.spent) == (0, 1, {}, None)
    lines = table(rows, METRICS, "samples").splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["sgd (1 of 3 diverged)", "sam (1 of 1 diverged)"]
    assert [cell.strip() for cell in lines[3].split("|")[2:-1]] == ["–"] * 4


def test_one_seed_has_no_deviation():
    assert (
        table(summarize([SGD]), METRICS, "samples").splitlines()[-1]
        == "| sgd    |   97.00 | 0.1000 |   8,990 |    10.0 |"
    )
