"""What is shown while an average is under way is what `average` would leave: branches may diverge, parameters join, α fall."""

import copy
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD

from conformance.table import same
from lookaround import Lookaround
from reference.late_training import Training, nesterov

SETTINGS = {"plain": {}, "alpha": {"alpha": 0.5}, "outer": {"outer": nesterov}, "reset": {"inner_state": "reset"}}


def held(training):
    model, optimizer = training.end()
    return model, optimizer["state"]


def shown_and_left(training):
    """What `averaged` shows, and what `average` leaves in a copy."""
    twin = copy.deepcopy(training)
    before = held(training)
    with training.optimizer.averaged():
        shown = training.end()[0]
    torch.testing.assert_close(held(training), before, rtol=0, atol=0, equal_nan=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a branch that is left out
        twin.optimizer.average()
    left = twin.end()[0]
    for state in (shown, left):  # a counter is the last branch's once the round has ended
        state.pop("body.1.num_batches_tracked")
    return shown, left


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    branches=st.integers(2, 3),
    k=st.integers(2, 4),
    overlap=st.integers(1, 3),
    name=st.sampled_from(sorted(SETTINGS)),
    diverging=st.sets(st.tuples(st.integers(0, 9), st.integers(0, 2)), max_size=4),
    unfrozen=st.integers(0, 10),
    flat=st.booleans(),
)
@pytest.mark.filterwarnings("ignore:branch . of . has weights:RuntimeWarning")
def test_what_is_shown_is_what_average_leaves(branches, k, overlap, name, diverging, unfrozen, flat):
    """Whatever diverges when, and when a layer is unfrozen. Branch 0 never diverges."""
    training = Training(branches, k, min(overlap, k - 1), **SETTINGS[name])
    last = training.model.body[3]
    last.requires_grad_(False)
    for step in range(10):
        last.requires_grad_(step >= unfrozen)
        for branch in range(branches) if flat else training.optimizer.around():
            training.turn(step, branch, float("nan") if branch and (step, branch) in diverging else 1.0)
        shown, left = shown_and_left(training)
        assert all(bool(t.isfinite().all()) for t in shown.values())
        assert same(shown, left), step


@pytest.mark.parametrize("way", ["around", "flat"])
def test_a_parameter_unfrozen_in_flight_in_a_branch_that_is_left_out_is_a_healthy_ones_when_it_is_taken_in(way):
    training = Training(branches=2, k=3, overlap=2)
    last = training.model.body[3].requires_grad_(False)
    training.passes(0, 2, way)
    for branch in training.optimizer.around():
        training.turn(2, branch, float("inf") if branch == 1 else 1.0)
    last.requires_grad_(True)
    training.passes(3, 4, way)
    with pytest.warns(RuntimeWarning, match=r"branch 1 of 2 .* average of round 0"):
        training.passes(4, 5, way)
    training.passes(5, 6, way)  # nobody is left out of round 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        training.passes(6, 12, way)


def test_alpha_below_one_set_while_an_average_of_one_branch_is_under_way_is_shown():
    """One branch goes up by 1 a step; k = 3, j = 2. No φ is kept while α is 1: it begins at the mean, which is what was sent."""
    weight = nn.Parameter(torch.tensor([0.0]))
    optimizer = Lookaround(SGD([weight], lr=1.0), 1, 3, overlap=2)
    shown = []
    for step in range(9):
        if step == 3:
            optimizer.alpha = 0.5
        for _ in optimizer.around():
            weight.grad = torch.tensor([-1.0])
            optimizer.step()
        with optimizer.averaged():
            shown.append(weight.item())
    # 3 is sent at α = 1, and is φ from then on: after the fourth step 3 + (4 - 3)/2. 6 is sent, of which comes φ = 3 + (6 - 3)/2 = 4.5:
    # 8 becomes 6.5, and that goes on to 7.5 at the round's end, which gives 4.5 + (7.5 - 4.5)/2 = 6.
    assert shown == [1, 2, 3, 3.5, 4, 4.5, 5, 5.5, 6]
    optimizer.average()
    assert weight.item() == 6


def test_alpha_that_falls_right_after_a_round_of_one_branch_shows_phi():
    weight = nn.Parameter(torch.tensor([0.0]))
    optimizer = Lookaround(SGD([weight], lr=1.0), 1, 2, overlap=1)
    for _ in range(2):
        weight.grad = torch.tensor([-1.0])
        optimizer.step()
    optimizer.alpha = 0.5
    with optimizer.averaged():
        assert weight.item() == 2
    optimizer.average()
    assert weight.item() == 2
