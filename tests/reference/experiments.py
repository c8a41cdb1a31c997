"""Experiment folders written by hand, as `lookaround train` leaves them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

METRICS = [
    {"name": "top1", "title": "top-1 %", "lower": False, "digits": 2, "loss": False},
    {"name": "nll", "title": "NLL", "lower": True, "digits": 4, "loss": True},
]
IDENTITY = {"task": "vision", "data": {"name": "digits", "digest": "ab12"}, "copies": "independent", "branches": 3}


def write_experiment(
    path: Path,
    runs: Mapping[str, Mapping[int, Sequence[float] | None]],
    *,
    identity: Mapping[str, Any] = IDENTITY,
    metrics: Sequence[Mapping[str, Any]] = METRICS,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    budget: int = 3000,
    plain: float | None = None,
) -> Path:
    """An experiment whose runs have these top-1 percentages at their evaluations; None is a run that has not ended.

    The NLL is a fiftieth of the error. A run of no evaluations diverged. ``plain`` is the top-1 of the weights that are not
    averaged, at every evaluation.
    """
    path.mkdir(parents=True)
    task = {"name": "vision", "config": {}}
    plan = {"methods": list(runs), "budget": budget}
    described = {"task": task, "identity": identity, "metrics": metrics, "options": plan, "environment": {}}
    (path / "experiment.json").write_text(json.dumps(described))
    for label, seeds in runs.items():
        for seed, values in seeds.items():
            folder = path / label.replace(":", ",").replace("/", "_") / f"seed-{seed}"
            folder.mkdir(parents=True)
            evaluations = [
                _record(i, value, seed, budget, plain, values) for i, value in enumerate(values or (), start=1)
            ]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in evaluations))
            if values is not None:
                result = _result(label, seed, values, (settings or {}).get(label, {}), budget)
                (folder / "result.json").write_text(json.dumps(result))
    return path


def _scores(top1: float) -> dict[str, float]:
    return {"top1": top1, "nll": (100 - top1) / 50}


def _record(
    index: int, top1: float, seed: int, budget: int, plain: float | None, values: Sequence[float] | None
) -> dict[str, Any]:
    spent = budget * index // len(values or ())
    record = {
        "step": index,
        "epoch": index,
        "spent": spent,
        "gradient_evaluations": index,
        "seconds": index + seed / 10,
    }
    extra = {} if plain is None else {"plain": _scores(plain)}
    return {**record, "train_loss": 1.0, "metrics": _scores(top1), **extra}


def _result(label: str, seed: int, values: Sequence[float], settings: Mapping[str, Any], budget: int) -> dict[str, Any]:
    return {
        "method": label,
        "settings": {"inner": "sgd", **settings},
        "seed": seed,
        "task": "0123456789abcdef",
        "unit": "samples",
        "budget": budget,
        "spent": budget,
        "gradient_evaluations": 30,
        "forward_passes": 1,
        "seconds": 10.0 + seed,
        "metrics": _scores(values[-1]) if values else None,
        "split": "test",
        "diverged": None if values else "the loss is not finite",
    }
