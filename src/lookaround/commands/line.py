"""``lookaround landscape line``: loss and accuracy from one solution to another and beyond them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from lookaround.commands.measuring import GridOptions, check_count, finish, first_process, measure, shared_processes
from lookaround.commands.parsing import parse, usage_errors
from lookaround.commands.runs import load_runs, network_of
from lookaround.landscape import Line, line_figure, line_positions, save_figure
from lookaround.tasks.checks import check_ranges


@dataclass(frozen=True, kw_only=True)
class LineOptions(GridOptions):
    """Draw loss and accuracy on the line through two runs' weights, with its barrier: line.png, line.svg and line.csv.

    A RUN is a folder OUT/METHOD/seed-SEED of lookaround train, or a safetensors file. A command that was interrupted goes
    on when it is given again; under torchrun the processes share the points.

    lookaround landscape line runs/digits/sgd/seed-0 runs/digits/lookaround/seed-0
    """

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN...")]
    """Two runs, at 0 and 1 on the line."""
    beyond: float = 0.5
    """How far the line goes on beyond either run, as a share of their distance."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, {"points": (2, None), "beyond": (0, 1000)})


def line(words: Sequence[str]) -> None:
    """Runs ``lookaround landscape line``."""
    options = parse(LineOptions, words, "landscape line")
    check_count("a line", options.runs, "two runs", len(options.runs) == 2)
    runs = load_runs(options.runs)
    model, _ = network_of(runs)
    with usage_errors():
        between = Line.between(*(run.weights(model) for run in runs))
        positions = line_positions(options.points, options.beyond)
    with shared_processes():
        grid = measure(options, runs, between, positions, (), "line")
        if not first_process():
            return
        figure = line_figure(grid, ends=(runs[0].name, runs[1].name), title=f"{options.split} images")
        files = [*save_figure(figure, options.out / "line"), options.out / "line.csv"]
        grid.save_csv(files[-1])
        finish(options, "line")
    print(f"barrier {grid.barrier():.4g}, distance {between.length:.4g}: 0 is {runs[0].name}, 1 is {runs[1].name}")
    print("\n".join(map(str, files)))
