"""The table of the study on text: seeds that chose nothing, at the end, paired with a baseline."""

from __future__ import annotations

import csv

from lookahead_text import FIELDS, report


def test_settings_are_held_against_a_baseline_on_the_seeds_that_both_have(tmp_path):
    path = tmp_path / "text.csv"
    losses = {
        ("adamw", 0.6): {0: 9.0, 100: 1.2, 101: 1.3, 102: 1.4},
        ("lookahead", 0.8): {100: 1.1, 101: 1.2, 102: 1.2},
    }
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(FIELDS)
        for (method, beta1), by_seed in losses.items():
            for seed, loss in by_seed.items():
                setting = [method, 64, 32, 800, 0.01, beta1, "cosine", seed]
                writer.writerow([*setting, "end", 400, 5.0, ""])  # half-way: no test loss yet
                writer.writerow([*setting, "end", 800, loss, loss])
                writer.writerow([*setting, "ema-0.99", 800, 7.0, 7.0])
    lines = list(report(path, "adamw, 0.01, 0.6"))
    assert lines[2] == "| 800 | adamw, 0.01, 0.6 | 3 | 1.3000 ± 0.1000 |  | |  |"
    # differences -0.1, -0.1, -0.2: mean -0.1333, standard error 0.0333, t with two degrees of freedom 4.303.
    assert lines[3] == "| 800 | lookahead, 0.01, 0.8 | 3 | 1.1667 ± 0.0577 | -0.1333 ± 0.1434 | 0.057 | 3 of 3 |"
