"""The mean over rows of processes: bit for bit that of one process where the order is fixed, in few bytes and little memory."""

from pathlib import Path

from reference.processes import fork_on_each


def test_means_over_one_to_four_real_processes():
    output = fork_on_each(Path(__file__).with_name("means_on_each.py"), "main", 4)
    assert output.count("checks among 4") == 4, output
