from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest

from lookaround.experiment import Budget, Machine, Plan
from lookaround.experiment.plan import difference
from lookaround.methods import Spec
from lookaround.tasks.vision import VisionConfig
from reference.tiny_experiment import a_plan


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "--epochs must be at least 1, got 0"),
        ({"budget": 0}, "--budget must be at least 1, got 0"),
        ({"evaluations": 0}, "--evaluations must be at least 1, got 0"),
        ({"hold_out": 1.5}, "--hold-out must be from 0 to 1, got 1.5"),
        ({"hold_out": float("nan")}, "--hold-out must be from 0 to 1, got nan"),
        ({"threads": 0}, "--threads must be at least 1, got 0"),
        ({"checkpoint_every": 0}, "--checkpoint-every must be at least 1, got 0"),
        ({"branches": 0}, "--branches must be at least 1, got 0"),
        ({"label_smoothing": 2.0}, "--label-smoothing must be from 0 to 1, got 2.0"),
        (
            {"augmentations": ("shift", "none")},
            r"--augmentations must be one name or one a branch \(3\), got shift none",
        ),
    ],
)
def test_a_value_out_of_range_is_named_as_it_is_typed(changes, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        a_plan(**changes)


@pytest.mark.parametrize(
    ("methods", "seeds", "message"),
    [
        (("sgd", "sgd"), (0,), "--methods names sgd twice; name each once"),
        (("sgd:lr=0.1", "sgd:lr=0.10"), (0,), "--methods names sgd:lr=0.1 twice; name each once"),
        (("sgd",), (1, 2, 1), "--seeds names 1 twice; name each once"),
        (("sgd",), (), "--seeds names none; name at least one"),
    ],
)
def test_methods_and_seeds_are_distinct(methods, seeds, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        a_plan(*methods, seeds=seeds)


def test_no_two_parts_have_an_option_of_one_name():
    names = [field.name for part in (VisionConfig, Budget, Machine) for field in fields(part)]
    assert len(set(names)) == len(names)


def test_options_hold_everything_as_json_and_tell_two_plans_apart():
    plan = a_plan("sgd", "lookahead:alpha=adaptive,betas=0.9/0.95,inner=adamw", seeds=(3, 4), hold_out=0.1)
    saved = json.loads(json.dumps(plan.options()))
    assert Plan.from_options(saved) == plan
    assert difference(saved, plan) is None
    assert difference(saved, replace(plan, seeds=(3,))) == "--seeds was 3 4 and is now 3"
    assert difference({**saved, "label_smoothing": 0.5}, plan) == "--label-smoothing was 0.5 and is now 0.0"
    assert difference({**saved, "methods": ["sgd"]}, plan) is not None


@pytest.mark.parametrize("harmless", ["root", "device", "threads", "checkpoint_every", "eval_batch_size"])
def test_what_changes_no_result_may_change(harmless):
    saved = a_plan().options()
    assert difference({**saved, harmless: "other"}, a_plan()) is None


def test_what_is_left_out_is_what_suits_the_data():
    plan = Plan.from_options({"data": "cifar10", "methods": ["sgd"], "seeds": [1]})
    assert (plan.config.model, plan.budget.epochs, plan.machine.threads) == ("resnet18", 200, None)
    assert (Plan.from_options({}).budget.epochs, Plan.from_options({}).machine.threads) == (20, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "chess"}, "unknown task 'chess'; choose one of vision"),
        ({"learning_rate": 1}, "unknown option 'learning_rate' for the vision task; it has "),
        ({"methods": ["sgd:k=1"]}, "sgd has no setting 'k'"),
        ({"epochs": "many"}, "epochs='many'"),
    ],
)
def test_options_that_cannot_be_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Plan.from_options(options)


@pytest.mark.parametrize(
    ("methods", "changes", "expected"),
    [
        (("sgd",), {}, None),
        (("sgd",), {"score": "held-out"}, 0.05),
        (("sgd", "swad"), {}, 0.05),
        (("sgd", "lookaround+swad"), {"hold_out": 0.2}, 0.2),
        (("sgd",), {"hold_out": 0.2}, 0.2),
    ],
)
def test_data_are_held_out_where_something_asks_for_them(methods, changes, expected):
    assert a_plan(*methods, **changes).held_out == expected


def test_extended_plans_keep_what_they_had():
    plan = a_plan("sgd").extended((Spec("sam"),), (5,))
    assert ([spec.label for spec in plan.methods], plan.seeds) == (["sgd", "sam"], (0, 5))
    with pytest.raises(ValueError, match="--seeds names 5 twice"):
        plan.extended((), (5,))
