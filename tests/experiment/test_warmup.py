"""A run that is all warm-up says so: its rate never comes down."""

from __future__ import annotations

from pathlib import Path

import pytest

from lookaround.experiment import train
from lookaround.experiment.running import prepare
from lookaround.experiment.warmup import never_down
from reference.tiny_experiment import Kept, a_plan


@pytest.mark.parametrize(
    ("method", "epochs", "named"),
    [
        ("sgd:warmup=1", 2, False),
        ("sgd:warmup=1.99", 2, False),
        ("sgd:warmup=2", 2, True),
        ("lookahead:warmup=3", 2, True),
        ("ema:warmup=3,schedule=constant", 2, False),
        ("sgd:warmup=0", 1, False),
        ("sgd", 1, True),  # images: the usual warm-up is one epoch
    ],
)
def test_a_warm_up_as_long_as_the_run_is_named(method: str, epochs: int, named: bool) -> None:
    said = never_down(prepare(a_plan(method, epochs=epochs)))
    assert (said != "") == named
    if named:
        assert said == (
            f"{a_plan(method).methods[0].label}: the warm-up is as long as the run of {epochs} epochs, so the learning rate never comes "
            "down; warmup= is in epochs and can be a part of one"
        )


def test_a_budget_of_less_than_an_epoch_counts_as_the_part_it_is(tmp_path: Path, display: Kept) -> None:
    plan = a_plan(
        "sgd:batch=16,warmup=0.5", "sgd:batch=16,warmup=0.25", budget=96
    )  # half of an epoch of 64 images in three copies
    train(plan, tmp_path / "out", display)
    (said,) = display.notes
    assert said.startswith("sgd:batch=16,warmup=0.5: the warm-up is as long as the run of 0.5")
