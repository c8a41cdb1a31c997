"""Soups of the networks that a recipe has trained, measured (Zhang et al. 2023, Table 11)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from lookaround.averaging import greedy_soup, uniform_soup, update_norm_stats
from lookaround.errors import UsageError
from lookaround.experiment.folder import ExperimentFolder
from lookaround.experiment.results import NETWORK
from lookaround.experiment.running import Prepared, prepare
from lookaround.experiment.summary import Spread
from lookaround.recipes.base import Part, Recipe, Row, Soups
from lookaround.recipes.report import Line, shown

ROWS = tuple(
    f"{kind}{how}" for kind in ("Uniform Soups", "Uniform Soups⁺", "Greedy Soups") for how in ("", ", update BN")
)
"""Rows of the table: all ingredients, the best of them, and those that held-out data keep; with averaged norm statistics, and with
ones estimated anew."""
PART = "soups"
Weights = Mapping[str, Tensor]


def check_soups(recipe: Recipe) -> None:
    """Raises `UsageError` where nothing is held out to choose ingredients by."""
    parts = () if recipe.soups is None else recipe.soups.parts
    if any(part.plan.held_out is None for part in recipe.parts if part.name in parts):
        raise UsageError(
            "soups choose their ingredients on training images that are held out; give hold_out=0.02, or another part"
        )


def soup_lines(recipe: Recipe, out: Path) -> list[Line]:
    """A recipe's soups by the metrics that the paper printed; without numbers where no ingredient is finished.

    Args:
        recipe: whose parts are trained.
        out: folder of their folders.
    """
    if recipe.soups is None:
        return []
    kitchen = _Kitchen.of(recipe, recipe.soups)
    files = [file for part in kitchen.parts for file in _networks(part, out / part.name)]
    found = dict(_measured(kitchen, files)) if files else {}
    return [line for name in ROWS for line in _lines(name, kitchen, found.get(name))]


@dataclass(frozen=True)
class _Kitchen:
    """What soups are made and measured with.

    Attributes:
        soups: which.
        parts: that train the ingredients.
        prepared: the first of them: the task that scores.
        norms: the part on whose minibatches norm statistics are estimated.
    """

    soups: Soups
    parts: tuple[Part, ...]
    prepared: Prepared
    norms: Prepared

    @classmethod
    def of(cls, recipe: Recipe, soups: Soups) -> _Kitchen:
        named = {part.name: part for part in recipe.parts}
        parts = tuple(named[name] for name in soups.parts)
        return cls(soups, parts, prepare(parts[0].plan), prepare(named[soups.norms].plan))

    def score(self, model: nn.Module, weights: Weights, split: str) -> dict[str, float]:
        """The task's metrics of these weights."""
        model.load_state_dict(weights)
        return self.prepared.scores(model.eval(), split)


def _networks(part: Part, folder: Path) -> list[Path]:
    """The files of the runs that reached their end."""
    runs = ExperimentFolder(folder, part.plan)
    files = [runs.run(*run) / NETWORK for run, end in runs.ends().items() if end is not None and end.metrics]
    return [file for file in files if file.is_file()]


def _measured(kitchen: _Kitchen, files: list[Path]) -> Iterator[tuple[str, dict[str, float]]]:
    model = kitchen.prepared.task.network()
    for name, weights in _cooked(kitchen, model, files).items():
        yield name, kitchen.score(model, weights, "test")
        batches = kitchen.norms.task.batches(0, kitchen.norms.task.defaults.batch, kitchen.norms.task.branches)
        copies = (batches.copy(place, place % batches.branches).inputs for place in range(batches.per_epoch))
        with kitchen.norms.precision():
            update_norm_stats(model, copies)
        yield f"{name}, update BN", kitchen.prepared.scores(model.eval(), "test")


def _cooked(kitchen: _Kitchen, model: nn.Module, files: list[Path]) -> dict[str, Weights]:
    leading = kitchen.prepared.task.metrics[0]

    def held_out(weights: Weights) -> float:
        value = kitchen.score(model, weights, "held-out")[leading.name]
        return -value if leading.lower else value

    greedy = greedy_soup(files, held_out)
    best = uniform_soup(files, best=min(kitchen.soups.best, len(files)), scores=greedy.scores)
    return {"Uniform Soups": uniform_soup(files), "Uniform Soups⁺": best, "Greedy Soups": greedy.weights}


def _lines(name: str, kitchen: _Kitchen, found: Mapping[str, float] | None) -> Iterator[Line]:
    row = Row(name, "", kitchen.soups.paper.get(name, {}))
    for metric in shown(row.paper, kitchen.prepared.task.metrics):
        ours = None if found is None else Spread.of([found[metric.name]])
        yield Line(PART, name, metric, row.paper.get(metric.name), ours)
