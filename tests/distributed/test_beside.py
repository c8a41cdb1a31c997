"""Lookahead, running averages, norm statistics and grids beside branches over processes: shards stay local, statistics are pooled."""

from pathlib import Path

from reference.processes import fork_on_each


def test_what_stands_beside_branches_on_three_and_four_processes():
    output = fork_on_each(Path(__file__).with_name("beside_on_each.py"), "main", 4)
    assert output.count("checked among") == 4 + 3
