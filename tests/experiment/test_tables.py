from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lookaround.experiment.tables import comma_separated, fitted, latex, markdown

HEADER = ["method", "top-1 %", "NLL", "budget"]
ROWS = [
    ["sgd", "97.50 ± 0.71", "0.1000 ± 0.0000", "43,110"],
    ["lookaround:k=20,start=0.5,lr=0.2,momentum=0.95", "98.50", "–", "43,110"],
]
cells = st.text(st.characters(blacklist_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=30)
tables = st.integers(1, 6).flatmap(
    lambda columns: st.lists(st.lists(cells, min_size=columns, max_size=columns), min_size=1, max_size=5)
)


def test_markdown_is_aligned():
    assert markdown(HEADER, ROWS).splitlines() == [
        "| method                                         |      top-1 % |             NLL | budget |",
        "| ---------------------------------------------- | -----------: | --------------: | -----: |",
        "| sgd                                            | 97.50 ± 0.71 | 0.1000 ± 0.0000 | 43,110 |",
        "| lookaround:k=20,start=0.5,lr=0.2,momentum=0.95 |        98.50 |               – | 43,110 |",
    ]


def test_what_does_not_fit_stands_below_under_the_same_names():
    assert fitted(HEADER, ROWS, width=65).splitlines() == [
        "method                           top-1 %              NLL  budget",
        "--------------------------  ------------  ---------------  ------",
        "sgd                         97.50 ± 0.71  0.1000 ± 0.0000  43,110",
        "lookaround:k=20,start=0.5,         98.50                –  43,110",
        "  lr=0.2,momentum=0.95",
    ]
    assert fitted(HEADER, ROWS, width=50).splitlines() == [
        "method                    top-1 %              NLL",
        "-------------------  ------------  ---------------",
        "sgd                  97.50 ± 0.71  0.1000 ± 0.0000",
        "lookaround:k=20,            98.50                –",
        "  start=0.5,lr=0.2,",
        "  momentum=0.95",
        "",
        "method               budget",
        "-------------------  ------",
        "sgd                  43,110",
        "lookaround:k=20,     43,110",
        "  start=0.5,lr=0.2,",
        "  momentum=0.95",
    ]


@pytest.mark.parametrize("width", [40, 60, 80, 100])
@settings(deadline=None)
@given(rows=tables)
def test_it_fits_wherever_every_column_does(width, rows):
    header, *rest = rows
    for line in fitted(header, rest, width).splitlines():
        assert len(line) <= max(width, 20 + 2 + max((len(c) for row in rows for c in row[1:]), default=0))


def test_a_table_of_names_alone_and_names_without_a_place_to_break():
    assert fitted(["method"], [["sgd"]]) == "method\n------\nsgd"
    found = fitted(["method", "x"], [["m" * 100, "1"]], width=40).splitlines()
    assert found[2:] == ["m" * 36 + "   1", "  " + "m" * 34, "  " + "m" * 30]


def test_latex_escapes_what_it_would_read_as_commands():
    found = latex(["method", "50 %"], [[r"a_b & c#d {e} \f ~ ^ $", "−1 ± 2 –"]])
    assert r"method & 50 \% \\" in found
    escaped = r"a\_b \& c\#d \{e\} \textbackslash{}f \textasciitilde{} \textasciicircum{} \$ & $-$1 $\pm$ 2 --"
    assert rf"{escaped} \\" in found


@settings(deadline=None)
@given(tables)
def test_csv_reads_back_as_it_was(rows):
    header, *rest = rows
    read = list(csv.reader(io.StringIO(comma_separated(header, rest))))
    assert [row or [""] for row in read] == [list(row) for row in rows]
