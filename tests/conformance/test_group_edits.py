"""Contract 1: what is kept of a parameter is found by the parameter, whatever is done to the lists of the groups."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from conformance.table import WRAPPERS, Net, closure_for, same
from lookaround import Lookahead, Lookaround

WRAPS = {
    "lookahead": lambda inner: Lookahead(inner, k=4, alpha=0.5),
    "lookaround": lambda inner: Lookaround(inner, branches=2, k=2),
    "lookaround, alpha": lambda inner: Lookaround(inner, branches=2, k=2, alpha=0.5),
}
every_wrap = pytest.mark.parametrize("name", WRAPS)


def scalars(*values):
    return [nn.Parameter(torch.tensor([v], dtype=torch.float64)) for v in values]


def walk(optimizer, params, steps, slope=1.0):
    """Steps in which every parameter has the gradient ``slope``, the same in every branch."""
    for _ in range(steps):
        for p in params:
            p.grad = torch.full_like(p, slope)
        optimizer.step()


def pop_first(group):
    group.pop(0)


def reverse(group):
    group.reverse()


def rotate(group):
    group.append(group.pop(0))


@every_wrap
@pytest.mark.parametrize("edit", [pop_first, reverse, rotate])
@pytest.mark.parametrize("before", [1, 2, 3, 5, 6])
def test_parameters_removed_or_reordered_leave_the_others_where_they_are(name, edit, before):
    """Every parameter moves as one that is alone: all have their own start, and the same gradients."""
    values = [7.0, 50.0, -3.0]
    params, alone = scalars(*values), [scalars(v)[0] for v in values]
    together = WRAPS[name](SGD(params, lr=0.125))
    apart = [WRAPS[name](SGD([p], lr=0.125)) for p in alone]
    walk(together, params, before)
    for optimizer, p in zip(apart, alone, strict=True):
        walk(optimizer, [p], before)
    edit(together.param_groups[0]["params"])
    kept = together.param_groups[0]["params"]
    walk(together, kept, 9)
    for optimizer, p, one in zip(apart, params, alone, strict=True):
        if any(p is k for k in kept):
            walk(optimizer, [one], 9)
            assert p.item() == one.item()


@every_wrap
@pytest.mark.parametrize("before", [0, 1, 2, 3, 4, 5, 6])
def test_a_parameter_put_in_front_takes_no_other_ones_place(name, before):
    first, second = scalars(7.0)[0], scalars(50.0)[0]
    optimizer, alone = WRAPS[name](SGD([first], lr=0.125)), scalars(7.0)
    reference = WRAPS[name](SGD(alone, lr=0.125))
    walk(optimizer, [first], before), walk(reference, alone, before)
    optimizer.param_groups[0]["params"].insert(0, second)
    walk(optimizer, [second, first], 12 - before), walk(reference, alone, 12 - before)
    assert first.item() == alone[0].item()
    # Every branch that stepped it moved it by 0.125 a step; what an average takes back is at most all of that.
    assert 50.0 - 0.125 * (12 - before) <= second.item() < 50.0


@every_wrap
def test_a_whole_group_removed_leaves_the_others_where_they_are(name):
    values = [7.0, 50.0, -3.0]
    params, alone = scalars(*values), scalars(-3.0)
    together = WRAPS[name](SGD([{"params": [p], "lr": 0.125} for p in params], lr=1.0))
    reference = WRAPS[name](SGD(alone, lr=0.125))
    walk(together, params, 5), walk(reference, alone, 5)
    del together.param_groups[0]
    walk(together, params[1:], 3), walk(reference, alone, 3)
    del together.param_groups[0]
    walk(together, params[2:], 6), walk(reference, alone, 6)
    assert params[2].item() == alone[0].item()


@pytest.mark.parametrize("name", WRAPS)
@pytest.mark.parametrize("before", [1, 3, 6])
def test_a_checkpoint_after_parameters_were_edited_resumes(name, before):
    params = scalars(7.0, 50.0, -3.0)
    optimizer = WRAPS[name](Adam(params[:2], lr=0.125))
    walk(optimizer, params[:2], before)
    optimizer.param_groups[0]["params"].append(params[2])
    # A state dict of torch's asks for this too: it refuses state of parameters that are in no group.
    optimizer.state.pop(optimizer.param_groups[0]["params"].pop(0), None)
    walk(optimizer, params[1:], 4)
    resumed_params = [nn.Parameter(p.detach().clone()) for p in params[1:]]
    resumed = WRAPS[name](Adam(resumed_params, lr=0.125))
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    walk(optimizer, params[1:], 7), walk(resumed, resumed_params, 7)
    assert same([p.detach() for p in params[1:]], [p.detach() for p in resumed_params])


@pytest.mark.parametrize("name", WRAPPERS)
def test_what_was_kept_of_a_removed_parameter_does_not_come_back(name):
    """A pruned network: the last layer leaves the optimizer and the model, and training goes on as before."""
    model = Net()
    optimizer = WRAPPERS[name](SGD(model.parameters(), lr=0.05, momentum=0.9), model)
    for step in range(5):
        optimizer.step(closure_for(optimizer, model, step))
    removed, model.body[3] = model.body[3], nn.Identity()
    kept = list(model.parameters())
    optimizer.param_groups[0]["params"][:] = kept
    for param in removed.parameters():
        optimizer.state.pop(param, None)
    for step in range(5, 12):
        optimizer.step(closure_for(optimizer, model, step))
    assert set(optimizer.state_dict()["state"]) <= set(range(len(kept)))
    assert all(torch.isfinite(p).all() for p in kept)
