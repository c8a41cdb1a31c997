"""Contract 4: torch's schema, weights-only loading, resuming bit for bit from any step, and nothing changed by what does not fit."""

import copy
import io

import pytest
import torch
from torch.optim import LBFGS, SGD, Adam

from conformance.table import WRAPPERS, Net, case, closure_for, momentum, same
from lookaround import Lookahead, Lookaround

STEPS = 12
MAKES = {"momentum": momentum, "adam": lambda params: Adam(params, lr=0.01)}
anything = pytest.mark.parametrize("name", WRAPPERS)


def through_file(state_dict):
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@anything
@pytest.mark.parametrize("make", MAKES)
def test_it_resumes_bit_for_bit_from_every_step(name, make):
    whole = case(name, MAKES[make])
    saved = []
    for step in range(STEPS):
        saved.append(through_file([whole.model.state_dict(), whole.optimizer.state_dict()]))
        whole.train(1, step)
    for step, (model, optimizer) in enumerate(saved):
        resumed = case(name, MAKES[make], seed=7)
        resumed.model.load_state_dict(model)
        resumed.optimizer.load_state_dict(optimizer)
        assert same(resumed.optimizer.state_dict(), optimizer)
        resumed.train(STEPS - step, step)
        assert same(resumed.model.state_dict(), whole.model.state_dict())
        assert same(resumed.optimizer.state_dict(), whole.optimizer.state_dict())


AROUND = [name for name in WRAPPERS if "sam" not in name or "around" in name or "ahead" in name]


@pytest.mark.parametrize("name", AROUND)
def test_it_resumes_between_the_branches_of_around(name):
    """Saved before a branch's step, the branch comes again; saved after it, the next one does."""
    saved, whole = [], case(name)
    for step in range(5):
        for _ in whole.optimizer.around():
            saved.append((step, through_file([whole.model.state_dict(), whole.optimizer.state_dict()])))
            whole.optimizer.step(closure_for(whole.optimizer, whole.model, step))
            last = whole.optimizer.branch == whole.optimizer.branches - 1
            if not last:
                saved.append((step, through_file([whole.model.state_dict(), whole.optimizer.state_dict()])))
    for first, (model, optimizer) in saved:
        resumed = case(name, seed=3)
        resumed.model.load_state_dict(model)
        resumed.optimizer.load_state_dict(optimizer)
        for step in range(first, 5):
            for _ in resumed.optimizer.around():
                resumed.optimizer.step(closure_for(resumed.optimizer, resumed.model, step))
        assert same(resumed.model.state_dict(), whole.model.state_dict())
        assert same(resumed.optimizer.state_dict(), whole.optimizer.state_dict())


@pytest.mark.parametrize("name", AROUND)
def test_a_checkpoint_saved_inside_averaged_resumes_the_training_weights(name):
    for steps in range(7):
        whole = case(name).train(steps)
        with whole.optimizer.averaged():
            model, optimizer = through_file([whole.model.state_dict(), whole.optimizer.state_dict()])
        resumed = case(name, seed=3)
        resumed.model.load_state_dict(model)
        resumed.optimizer.load_state_dict(optimizer)
        assert same(list(resumed.model.parameters()), list(whole.model.parameters()))
        if "model" in name or "alpha" in name:
            assert same(resumed.model.state_dict(), whole.model.state_dict())
        assert same(resumed.optimizer.state_dict(), whole.optimizer.state_dict())
        resumed.train(5, steps), whole.train(5, steps)
        assert same(list(resumed.model.parameters()), list(whole.model.parameters()))


@anything
def test_the_schema_is_torchs(name):
    state_dict = case(name).train(5).optimizer.state_dict()
    assert set(state_dict) == {"state", "param_groups"}
    assert set(state_dict["state"]) <= set(range(6))
    assert state_dict["param_groups"][0]["params"] == list(range(6))
    plain = momentum(list(Net().parameters()))
    plain.load_state_dict(state_dict)


@anything
def test_the_inner_optimizers_own_objects_are_left_alone(name):
    model = Net()
    inner = momentum(list(model.parameters()))
    defaults, groups, first = dict(inner.defaults), inner.param_groups, next(model.parameters())
    optimizer = WRAPPERS[name](inner, model)
    for step in range(7):
        optimizer.step(closure_for(optimizer, model, step))
        assert optimizer.param_groups is inner.param_groups is groups
        assert {k: v for k, v in optimizer.state[first].items() if "." not in k} == dict(inner.state[first])
        assert inner.defaults == defaults
        assert all(set(inner.state[p]) <= {"momentum_buffer"} for p in model.parameters())


@anything
@pytest.mark.parametrize("make", MAKES)
def test_a_plain_checkpoint_of_the_inner_optimizer_begins_a_first_round(name, make):
    """Into a fresh wrapper and into one in the middle of a round, it makes the same start."""
    model = Net()
    plain = MAKES[make](list(model.parameters()))
    for step in range(4):
        plain.step(closure_for(plain, model, step))
    fresh, used = case(name, MAKES[make], seed=1), case(name, MAKES[make], seed=2).train(8)
    for each in (fresh, used):
        each.model.load_state_dict(model.state_dict())
        each.optimizer.load_state_dict(copy.deepcopy(plain.state_dict()))
        each.train(9, 4)
    assert same(fresh.model.state_dict(), used.model.state_dict())
    if "adaptive" not in name:
        assert same(fresh.optimizer.state_dict(), used.optimizer.state_dict())


def wider():
    model = Net()
    model.body[0], model.body[1], model.body[3] = torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 2)
    return model


def grouped(params):
    return SGD([{"params": params[:2]}, {"params": params[2:]}], lr=0.05, momentum=0.9)


def assert_refused(target, state_dict, match):
    before = copy.deepcopy([target.model.state_dict(), target.optimizer.state_dict(), target.optimizer.param_groups])
    with pytest.raises(ValueError, match=match):
        target.optimizer.load_state_dict(state_dict)
    after = [target.model.state_dict(), target.optimizer.state_dict(), target.optimizer.param_groups]
    assert same(
        [p.detach() for g in before.pop()[0:] for p in g["params"]],
        [p.detach() for g in after.pop() for p in g["params"]],
    )
    assert same(before, after)
    target.train(3, 5)


@anything
@pytest.mark.parametrize("used", [0, 5])
def test_a_checkpoint_of_other_shapes_changes_nothing(name, used):
    model = wider()
    other = WRAPPERS[name](momentum(list(model.parameters())), model)
    for step in range(5):
        other.step(closure_for(other, model, step))
    assert_refused(case(name).train(used), other.state_dict(), r"has shape|differ")


@anything
@pytest.mark.parametrize("used", [0, 5])
def test_a_checkpoint_of_other_groups_changes_nothing(name, used):
    assert_refused(case(name).train(used), case(name, grouped).train(5).optimizer.state_dict(), "parameter groups of")


@pytest.mark.parametrize(
    ("saved", "here", "missing"),
    [
        ("lookaround", "lookahead", "Lookaround"),
        ("lookahead", "lookaround, model", "Lookahead"),
        ("sam", "lookahead", "SAM"),
        ("lookahead around sam", "lookahead", "SAM"),
        ("lookaround around lookahead", "lookaround", "Lookahead"),
        ("lookaround around lookahead", "lookahead", "Lookaround"),
    ],
)
def test_a_checkpoint_of_another_wrapper_changes_nothing(saved, here, missing):
    message = f"^this is a checkpoint of {missing}, and the optimizer .* without {missing}: build the optimizer"
    assert_refused(case(here).train(3), case(saved).train(3).optimizer.state_dict(), message)


@pytest.mark.parametrize("used", [0, 5])
@pytest.mark.parametrize("branches", [1, 2, 4])
def test_a_checkpoint_of_another_number_of_branches_changes_nothing(branches, used):
    model = Net()
    other = Lookaround(momentum(list(model.parameters())), branches)
    for step in range(branches + 1):
        other.step(closure_for(other, model, step))
    assert_refused(
        case("lookaround").train(used), other.state_dict(), f"has {branches} branches, this Lookaround has 3"
    )


@pytest.mark.parametrize("name", ["lookaround, model", "lookaround, alpha", "lookaround"])
def test_a_checkpoint_with_other_buffers_changes_nothing(name):
    model = Net()
    model.register_buffer("extra", torch.zeros(2))
    other = WRAPPERS["lookaround, model" if name == "lookaround" else name](momentum(list(model.parameters())), model)
    for step in range(4):
        other.step(closure_for(other, model, step))
    assert_refused(case(name).train(2), other.state_dict(), "buffers")


def test_one_branch_with_other_buffers_of_its_slow_weights_changes_nothing():
    model, small = Net(), Net(1)
    model.register_buffer("running_extra", torch.zeros(2))
    optimizers = [Lookaround(momentum(list(m.parameters())), 1, k=3, alpha=0.5, model=m) for m in (model, small)]
    optimizers[0].step(closure_for(optimizers[0], model, 0))
    before = copy.deepcopy(optimizers[1].state_dict())
    with pytest.raises(ValueError, match="running_extra"):
        optimizers[1].load_state_dict(optimizers[0].state_dict())
    assert same(before, optimizers[1].state_dict())


@pytest.mark.parametrize("name", ["lookahead", "lookahead, adaptive", "lookaround", "lookaround, alpha"])
def test_a_checkpoint_without_its_slow_weights_or_branches_changes_nothing(name):
    state_dict = copy.deepcopy(case(name).train(2).optimizer.state_dict())
    state_dict["state"] = {
        i: {k: t for k, t in e.items() if k == "momentum_buffer"} for i, e in state_dict["state"].items()
    }
    assert_refused(case(name).train(1), state_dict, "lacks")


def test_a_checkpoint_saved_inside_averaged_without_its_training_weights_changes_nothing():
    whole = case("lookahead").train(2)
    with whole.optimizer.averaged():
        state_dict = copy.deepcopy(whole.optimizer.state_dict())
    for entry in state_dict["state"].values():
        del entry["lookahead.training"]
    assert_refused(case("lookahead").train(1), state_dict, "lacks lookahead.training")


@pytest.mark.parametrize("branches", [1, 2])
def test_an_alpha_lowered_in_the_middle_of_a_round_resumes(branches):
    """There is no φ yet: it is taken at the next round, before and after resuming."""
    model = Net()
    optimizer = Lookaround(momentum(list(model.parameters())), branches, k=3)
    optimizer.step(closure_for(optimizer, model, 0))
    optimizer.alpha = 0.5
    saved = through_file([model.state_dict(), optimizer.state_dict()])
    resumed_model = Net(3)
    resumed = Lookaround(momentum(list(resumed_model.parameters())), branches, k=3)
    resumed_model.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    for step in range(1, 13):
        optimizer.step(closure_for(optimizer, model, step))
        resumed.step(closure_for(resumed, resumed_model, step))
    assert same(model.state_dict(), resumed_model.state_dict())


def test_training_after_a_load_does_not_reach_into_the_checkpoints_branches():
    """LBFGS keeps its history in lists."""

    def fresh():
        model = Net().eval()
        return model, Lookaround(LBFGS(list(model.parameters()), lr=0.1, max_iter=2, history_size=3), 2, k=2)

    model, optimizer = fresh()
    for step in range(5):
        optimizer.step(closure_for(optimizer, model, step))
    saved = copy.deepcopy(optimizer.state_dict())
    entry, kept = saved["state"][0], copy.deepcopy(saved["state"][0])
    other_model, other = fresh()
    other_model.load_state_dict(model.state_dict())
    other.load_state_dict(saved)
    for step in range(5, 10):
        other.step(closure_for(other, other_model, step))
    branch = [label for label in entry if "branch" in label]
    assert "lookaround.branch.1.inner.old_dirs" in branch
    assert same([entry[label] for label in branch], [kept[label] for label in branch])


@pytest.mark.parametrize("wrap", [lambda o: Lookahead(o, k=5), lambda o: Lookaround(o, branches=2, k=5)])
@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
def test_a_parameter_in_two_groups_has_one_entry(wrap):
    param = torch.nn.Parameter(torch.ones(2))
    optimizer = wrap(torch.optim.SGD([param], lr=0.1, momentum=0.9))
    param.grad = torch.ones(2)
    optimizer.step()
    once = optimizer.state_dict()
    optimizer.param_groups.extend(list(optimizer.param_groups))
    twice = optimizer.state_dict()
    assert [group["params"] for group in twice["param_groups"]] == [[0], [0]]
    assert same(twice["state"], once["state"])
    assert same(twice["param_groups"][1], once["param_groups"][0])


def test_a_mapping_by_parameter_is_copied_without_its_parameters():
    """As pytorch_optimizer's TRAC has it around a wrapper."""
    params = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = Lookahead(torch.optim.SGD(params, lr=0.1), k=5)
    saved = optimizer.state_dict()
    given = {params[0]: torch.ones(2), params[1]: torch.zeros(2)}
    optimizer.load_state_dict({**saved, "state": {**saved["state"], "all": given}})
    held = optimizer.state["all"]
    assert all(a is b for a, b in zip(held, params, strict=True))
    assert same(list(held.values()), list(given.values()))
    assert held[params[0]] is not given[params[0]]
