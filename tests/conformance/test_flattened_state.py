"""Contract 4: optimizer checkpoints flattened to one level of names, as torchtitan and `torch.distributed.checkpoint` write them.

torchtitan (components/optimizer/utils.py) makes state that is missing with a step of zero gradients and no learning rate, and writes what
`state_dict` gives under ``state.{parameter}.{key}`` and ``param_groups.{parameter}.{key}``; it reads by the keys the optimizer it loads
into has in ``state[parameter]`` and in its groups. The three operations are written here anew.
"""

import copy

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import SGD, Adam, AdamW

from conformance.table import WRAPPERS, Net, closure_for, same
from conformance.test_checkpoints import through_file

INNERS = {
    "momentum": lambda params: SGD(params, lr=0.05, momentum=0.9),
    "adam": lambda params: Adam(params, lr=0.01),
    "adamw": lambda params: AdamW(params, lr=0.01, weight_decay=0.1, amsgrad=True),
}
NAMES = [name for name in WRAPPERS if "sam" not in name]
everything = pytest.mark.parametrize("name", NAMES)
every_inner = pytest.mark.parametrize("inner", INNERS)
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*torch.distributed.*:UserWarning")


def start(name, inner, seed=0):
    model = Net(seed)
    groups = [
        {"params": list(model.body[0].named_parameters("0")), "lr": 0.02},
        {"params": [*model.body[1].named_parameters("1"), *model.body[3].named_parameters("3")], "lr": 0.01},
    ]
    return model, WRAPPERS[name](INNERS[inner](groups), model)


def train(model, optimizer, steps, first=0):
    for step in range(first, first + steps):
        closure_for(optimizer, model, step)()
        optimizer.step()
        optimizer.zero_grad()


def create_state(optimizer):
    """The first of the three: a step that moves nothing, where there is no state yet."""
    if optimizer.state:
        return
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for param in group["params"]:
            param.grad = torch.zeros_like(param)
    optimizer.step(closure=None)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)


def flatten(optimizer):
    """The second: one level of names, dictionaries inside an entry included; a group's settings once for each parameter."""
    state_dict, flat = optimizer.state_dict(), {}

    def put(prefix, value):
        if isinstance(value, dict):
            for key, inside in value.items():
                put(f"{prefix}.{key}", inside)
        else:
            flat[prefix] = value

    for group in state_dict["param_groups"]:
        for index, name in zip(group["params"], group["param_names"], strict=True):
            put(f"state.{name}", state_dict["state"].get(index, {}))
            flat |= {f"param_groups.{name}.{k}": v for k, v in group.items() if k not in ("params", "param_names")}
    return flat


def unflatten(optimizer, flat):
    """The third: for each key there is in the optimizer, what the file has under it; a group without one of its keys is an error."""
    state, groups, index = {}, [], 0
    for group in optimizer.param_groups:
        indices = list(range(index, index + len(group["params"])))
        for i, name, param in zip(indices, group["param_names"], group["params"], strict=True):
            keys = [f"state.{name}.{key}" for key in optimizer.state.get(param, {})]
            found = {key.removeprefix(f"state.{name}."): flat[key] for key in keys if key in flat}
            if found:
                state[i] = found
        first = group["param_names"][0]
        settings = [key for key in group if key not in ("params", "param_names")]
        groups.append({"params": indices, **{key: flat[f"param_groups.{first}.{key}"] for key in settings}})
        index += len(indices)
    optimizer.load_state_dict({"state": state, "param_groups": groups})


@everything
@every_inner
@pytest.mark.parametrize("steps", [1, 4, 5, 7])
def test_torchtitans_three_operations_resume_bit_for_bit(name, inner, steps):
    model, optimizer = start(name, inner)
    create_state(optimizer)
    train(model, optimizer, steps)
    create_state(optimizer)
    saved = through_file([model.state_dict(), flatten(optimizer)])
    resumed_model, resumed = start(name, inner, seed=4)
    create_state(resumed)
    resumed_model.load_state_dict(saved[0])
    unflatten(resumed, saved[1])
    assert same(through_file(flatten(resumed)), saved[1])
    train(model, optimizer, 7, steps), train(resumed_model, resumed, 7, steps)
    assert same(resumed_model.state_dict(), model.state_dict())
    assert same(resumed.state_dict(), optimizer.state_dict())


@everything
@every_inner
def test_the_step_that_creates_state_moves_nothing_and_is_not_the_first(name, inner):
    (model, optimizer), (plain_model, plain) = start(name, inner), start(name, inner, seed=4)
    start_of = copy.deepcopy(model.state_dict())
    assert not optimizer.state
    create_state(optimizer)
    assert optimizer.state
    assert same(model.state_dict(), start_of)
    keys = [set(optimizer.state[p]) for group in optimizer.param_groups for p in group["params"]]
    assert keys == [set(entry) for entry in optimizer.state_dict()["state"].values()]
    plain_model.load_state_dict(start_of)
    train(model, optimizer, 2), train(plain_model, plain, 2)
    round_of = [
        {k: v for k, v in o.param_groups[0].items() if k.endswith(("_round", "_step"))} for o in (optimizer, plain)
    ]
    assert round_of[0] == round_of[1]


@everything
@every_inner
@pytest.mark.parametrize("steps", [1, 5, 6])
def test_the_keys_of_live_state_are_those_of_the_state_dict(name, inner, steps):
    """Other people's code walks `optimizer.state`: its keys are parameters, and each entry has what is saved of it."""
    model, optimizer = start(name, inner)
    train(model, optimizer, steps)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    assert all(any(key is p for p in params) for key in optimizer.state)
    saved = optimizer.state_dict()["state"]
    for index, param in enumerate(params):
        assert same(dict(optimizer.state[param]), saved[index])


@everything
@pytest.mark.parametrize("steps", [4, 5, 7])
def test_torchs_flattened_optimizer_state_resumes_bit_for_bit(name, steps):
    options = StateDictOptions(flatten_optimizer_state_dict=True)
    model, optimizer = start(name, "adam")
    train(model, optimizer, steps)
    flat = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
    assert not any(isinstance(value, dict) for value in flat.values())
    resumed_model, resumed = start(name, "adam", seed=4)
    resumed_model.load_state_dict(model.state_dict())
    set_optimizer_state_dict(resumed_model, resumed, flat, options=options)
    train(model, optimizer, 7, steps), train(resumed_model, resumed, 7, steps)
    assert same(resumed_model.state_dict(), model.state_dict())


def test_the_three_operations_are_right_around_no_wrapper():
    """The same, of the inner optimizers alone: what this file asks is possible."""
    for inner in INNERS:
        models = [Net(seed) for seed in (0, 4)]
        optimizers = [INNERS[inner](list(m.named_parameters())) for m in models]
        train(models[0], optimizers[0], 4)
        create_state(optimizers[1])
        models[1].load_state_dict(models[0].state_dict())
        unflatten(optimizers[1], through_file(flatten(optimizers[0])))
        for model, optimizer in zip(models, optimizers, strict=True):
            train(model, optimizer, 5, 4)
        assert same(models[0].state_dict(), models[1].state_dict())


def test_a_key_that_is_missing_in_the_file_is_refused():
    model, optimizer = start("lookahead", "adam")
    train(model, optimizer, 4)
    flat = flatten(optimizer)
    del flat["state.0.weight.lookahead.slow"]
    target_model, target = start("lookahead", "adam", seed=4)
    train(target_model, target, 2)
    before = copy.deepcopy([target_model.state_dict(), target.state_dict()])
    with pytest.raises(ValueError, match="slow"):
        unflatten(target, flat)
    assert same(before, [target_model.state_dict(), target.state_dict()])
    assert isinstance(next(target_model.parameters()), nn.Parameter)
