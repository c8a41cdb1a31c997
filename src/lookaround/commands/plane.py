"""``lookaround landscape plane``: loss and accuracy on a plane in weight space."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lookaround.commands.measuring import GridOptions, check_count, finish, first_process, measure, shared_processes
from lookaround.commands.parsing import parse, usage_errors
from lookaround.commands.runs import Run, load_runs, network_of
from lookaround.landscape import Grid, Plane, RandomPlane, grid_around, plane_figure, save_figure, save_page
from lookaround.tasks.checks import check_ranges


@dataclass(frozen=True, kw_only=True)
class PlaneOptions(GridOptions):
    """Draw the plane through three runs' weights: plane.png, plane.svg, plane.csv and a page to turn, plane.html.

    A RUN is a folder OUT/METHOD/seed-SEED of lookaround train, or a safetensors file. Runs beyond the third are drawn where
    they project to. One RUN alone gives the plane along two filter-normalized random directions around it. A command
    that was interrupted goes on when it is given again; under torchrun the processes share the points.

    lookaround landscape plane runs/digits/sgd/seed-0 runs/digits/lookahead/seed-0 runs/digits/lookaround/seed-0
    """

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN...")]
    """Three runs or more, or one."""
    quantity: Literal["loss", "accuracy", "error"] = "loss"
    """What the static figure shows; page and CSV have loss and accuracy."""
    margin: float = 0.4
    """Room on every side of the runs, as a share of the longer side of their box."""
    extent: float = 1.0
    """Around one run: how far the plane goes on every side; 1 perturbs each filter by its own norm."""
    seed: int = 0
    """Of the random directions around one run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, {"points": (2, None), "margin": (0, None)})
        if not 0 < self.extent < math.inf:
            raise ValueError(f"--extent must be above 0, got {self.extent}")


def plane(words: Sequence[str]) -> None:
    """Runs ``lookaround landscape plane``."""
    options = parse(PlaneOptions, words, "landscape plane")
    count = len(options.runs)
    check_count("a plane", options.runs, "three runs or more, or one", count >= 3 or count == 1)
    runs = load_runs(options.runs)
    with usage_errors():
        geometry, places = _around(options, runs[0]) if count == 1 else _through(runs)
        xs, ys = _coordinates(options, places)
    with shared_processes():
        grid = measure(options, runs, geometry, xs, ys, "plane")
        if first_process():
            _write(options, grid, places)


def _through(runs: Sequence[Run]) -> tuple[Plane, dict[str, tuple[float, ...]]]:
    model, _ = network_of(runs)
    vectors = [run.weights(model) for run in runs]
    spanned = Plane.through(*vectors[:3])
    return spanned, {run.name: spanned.project(vector) for run, vector in zip(runs, vectors, strict=True)}


def _around(options: PlaneOptions, run: Run) -> tuple[RandomPlane, dict[str, tuple[float, ...]]]:
    model, _ = network_of([run])
    return RandomPlane.around(model, options.seed), {run.name: (0.0, 0.0)}


def _coordinates(options: PlaneOptions, places: dict[str, tuple[float, ...]]) -> tuple[list[float], list[float]]:
    if len(places) > 1:
        return grid_around(places.values(), options.points, options.margin)
    return grid_around([(-options.extent, -options.extent), (options.extent, options.extent)], options.points, 0.0)


def _write(options: PlaneOptions, grid: Grid, places: dict[str, tuple[float, ...]]) -> None:
    title = f"{options.quantity} on {options.split} images"
    with usage_errors():
        figure = plane_figure(grid, quantity=options.quantity, points=places, title=title)
    files = [*save_figure(figure, options.out / "plane"), options.out / "plane.html", options.out / "plane.csv"]
    save_page(grid, files[-2], points=places, title=f"Loss landscape on {options.split} images")
    grid.save_csv(files[-1])
    finish(options, "plane")
    for name, (x, y, *away) in places.items():
        print(f"{name:<24} x = {x:.4g}, y = {y:.4g}" + "".join(f", {d:.4g} off the plane" for d in away))
    print("\n".join(map(str, files)))
