from __future__ import annotations

import pytest

from lookaround.experiment.grid import candidates, equal_effort, parse_grid
from lookaround.methods import Spec
from lookaround.tasks.base import Defaults

DEFAULTS = Defaults("sgd", 64, {"sgd": {"lr": 0.1, "momentum": 0.9}, "adamw": {"lr": 1e-3}})


def labels(text, *grid):
    return [spec.label for spec in candidates(Spec.parse(text), parse_grid(grid), DEFAULTS, 3)]


def test_candidates_are_the_combinations_of_what_the_method_has():
    assert labels("lookaround:alpha=0.5", "lr=0.1,0.2", "k=5,20") == [
        "lookaround:k=5,alpha=0.5,lr=0.1",
        "lookaround:k=20,alpha=0.5,lr=0.1",
        "lookaround:k=5,alpha=0.5,lr=0.2",
        "lookaround:k=20,alpha=0.5,lr=0.2",
    ]
    assert labels("sgd", "lr=0.1,0.2", "k=5,20") == ["sgd:lr=0.1", "sgd:lr=0.2"]
    assert labels("sgd:lr=0.3", "lr=0.1,0.2", "momentum=0.5") == ["sgd:lr=0.3,momentum=0.5"]


def test_multiples_are_of_the_methods_own_value():
    assert labels("sgd", "lr=x0.5,x2") == ["sgd:lr=0.05", "sgd:lr=0.2"]
    assert labels("lookahead:inner=adamw", "lr=x0.5,x1.4") == [
        "lookahead:lr=0.0005,inner=adamw",
        "lookahead:lr=0.0014,inner=adamw",
    ]
    assert labels("lookaround", "k=x2") == ["lookaround:k=10"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lr"], "--grid takes setting=value,value,… such as lr=0.05,0.1,0.2, got 'lr'"),
        (["lr=0.1,,0.2"], "--grid takes setting=value"),
        (["lr=0.1", "lr=0.2"], "--grid names lr twice"),
        (["lr=0.1,0.1"], "--grid names a value of lr twice"),
        ([], "--grid names no setting to tune"),
    ],
)
def test_a_grid_that_cannot_be_read_is_named(words, said):
    with pytest.raises(ValueError, match=said):
        parse_grid(words)


def test_a_value_that_a_setting_does_not_take_is_named():
    with pytest.raises(ValueError, match="sgd: lr must be a number, got 'fast'"):
        labels("sgd", "lr=fast")
    with pytest.raises(ValueError, match="lookahead: inner_state is maintain, of which there is no multiple x2"):
        labels("lookahead", "inner_state=x2")


def test_every_method_is_tried_as_often():
    grid = parse_grid(["lr=0.1,0.2", "k=5,20,80"])
    found = {name: candidates(Spec(name), grid, DEFAULTS, 3) for name in ("sgd", "lookaround", "lookahead")}
    fair = equal_effort(found, None)
    assert [len(specs) for specs in fair.values()] == [2, 2, 2]
    assert fair == equal_effort(found, None)  # the draw is always the same
    assert all(set(specs) <= set(found[name]) for name, specs in fair.items())
    assert [len(specs) for specs in equal_effort(found, 1).values()] == [1, 1, 1]
    with pytest.raises(
        ValueError, match="--trials must be from 1 to 2, the combinations that sgd has in --grid, got 3"
    ):
        equal_effort(found, 3)


def test_a_method_without_anything_to_tune_is_named():
    grid = parse_grid(["k=5,20"])
    found = {name: candidates(Spec(name), grid, DEFAULTS, 3) for name in ("sgd", "lookaround")}
    with pytest.raises(ValueError, match="sgd has none of the settings in --grid to tune"):
        equal_effort(found, None)
