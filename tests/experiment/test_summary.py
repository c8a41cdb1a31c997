from __future__ import annotations

import math
from dataclasses import replace

from lookaround.experiment.results import Divergence, Result
from lookaround.experiment.summary import Spread, summarize, table

SGD = Result("sgd", 0, 97.0, 99.0, 0.1, 3000, 1, 10.0)
SAM = Result("sam", 0, 98.5, 100.0, 0.08, 6000, 1, 21.0)


def test_a_row_is_mean_and_sample_deviation_over_the_seeds():
    results = [SGD, SAM, replace(SGD, seed=1, top1=98.0, nll=0.3), replace(SAM, seed=1)]
    sgd, sam = summarize(results)
    assert (sgd.method, sgd.seeds, sgd.gradient_evaluations) == ("sgd", 2, 3000)
    assert sgd.top1 == Spread(97.5, math.sqrt(0.5))
    assert sgd.nll.mean == 0.2
    assert (sam.method, sam.top1.std) == ("sam", 0.0)


def test_the_table_is_markdown_and_aligned():
    results = [SGD, replace(SGD, seed=1, top1=98.0), SAM, replace(SAM, seed=1)]
    assert table(summarize(results)).splitlines() == [
        "| method |      top-1 % |       top-5 % |             NLL | T-budget | I-budget |    seconds |",
        "| ------ | -----------: | ------------: | --------------: | -------: | -------: | ---------: |",
        "| sgd    | 97.50 ± 0.71 |  99.00 ± 0.00 | 0.1000 ± 0.0000 |    3,000 |        1 | 10.0 ± 0.0 |",
        "| sam    | 98.50 ± 0.00 | 100.00 ± 0.00 | 0.0800 ± 0.0000 |    6,000 |        1 | 21.0 ± 0.0 |",
    ]


def test_what_diverged_is_counted_beside_the_numbers_of_the_rest():
    ends = [Divergence("sgd", 1, "why", 7, 1.0), SGD, Divergence("sam", 0, "why", 7, 1.0), replace(SGD, seed=2)]
    sgd, sam = rows = summarize(ends)
    assert (sgd.seeds, sgd.diverged, sgd.top1, sgd.gradient_evaluations) == (2, 1, Spread(97.0, 0.0), 3000)
    assert (sam.seeds, sam.diverged, sam.top1, sam.nll, sam.gradient_evaluations) == (0, 1, None, None, None)
    assert [line.split("|")[1].strip() for line in table(rows).splitlines()[2:]] == [
        "sgd (1 of 3 diverged)",
        "sam (1 of 1 diverged)",
    ]
    assert [cell.strip() for cell in table(rows).splitlines()[3].split("|")[2:-1]] == ["–"] * 6


def test_one_seed_has_no_deviation_and_few_classes_no_top_5():
    (row,) = summarize([replace(SGD, top5=None)])
    assert table([row]).splitlines()[-1] == "| sgd    |   97.00 | 0.1000 |    3,000 |        1 |    10.0 |"
