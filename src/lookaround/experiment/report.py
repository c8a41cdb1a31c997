"""What a finished experiment leaves: every run's numbers, the table over the seeds, the curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lookaround.errors import DivergedError
from lookaround.experiment.files import write_atomically, write_json
from lookaround.experiment.folder import ExperimentFolder
from lookaround.experiment.plots import save_curves
from lookaround.experiment.records import METRICS, read_records
from lookaround.experiment.results import NETWORK, Divergence, Result
from lookaround.experiment.summary import Row, summarize, table

TABLE = "table.md"
CURVES = "curves.png"
RESULTS = "results.json"


@dataclass(frozen=True)
class Comparison:
    """A finished experiment.

    Attributes:
        results: of every run that reached its end.
        diverged: the runs that did not.
        rows: one a method, over the seeds.
        table: the rows as text.
        curves: the picture of the learning curves.
        networks: of every run that reached its end, the safetensors file of its averaged weights.
    """

    results: list[Result]
    diverged: list[Divergence]
    rows: list[Row]
    table: str
    curves: Path
    networks: list[Path]


def report(folder: ExperimentFolder) -> Comparison:
    """Writes results, table and curves of a finished experiment into its folder.

    Raises:
        DivergedError: when every run has diverged; all is written then too.
        OSError: when a file cannot be written.
    """
    ends = [end for end in folder.ends().values() if end is not None]
    results = [end for end in ends if isinstance(end, Result)]
    diverged = [end for end in ends if isinstance(end, Divergence)]
    rows = summarize(ends)
    text = table(rows)
    parts: dict[str, Sequence[Row | Result | Divergence]] = {"rows": rows, "runs": results, "diverged": diverged}
    write_json(folder.path / RESULTS, {name: [asdict(item) for item in part] for name, part in parts.items()})
    write_atomically(folder.path / TABLE, f"{text}\n".encode())
    records = {(end.method, end.seed): read_records(folder.run(end.method, end.seed) / METRICS) for end in ends}
    save_curves(folder.path / CURVES, records, folder.config, {(end.method, end.seed) for end in diverged})
    if not results:
        every = "every run has diverged: " if len(diverged) > 1 else ""
        raise DivergedError(every + diverged[0].diverged)
    networks = [folder.run(end.method, end.seed) / NETWORK for end in results]
    return Comparison(results, diverged, rows, text, folder.path / CURVES, networks)
