"""Contract 9: what happens to a pass whose loop is left, and to gradients that are there when the branch changes."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.optim import SGD

from conformance.table import WRAPPERS, case, closure_for, same
from conformance.test_checkpoints import through_file
from lookaround import Lookaround

AROUND = [name for name in WRAPPERS if name not in ("sam", "asam")]
averaging = pytest.mark.parametrize("name", AROUND)
SEVERAL = [name for name in AROUND if "lookaround" in name]


def go_around(each, first, last):
    for step in range(first, last):
        for _ in each.optimizer.around():
            each.optimizer.step(closure_for(each.optimizer, each.model, step))
    return each


def assert_same(first, second):
    assert same(first.model.state_dict(), second.model.state_dict())
    assert same(first.optimizer.state_dict(), second.optimizer.state_dict())


@averaging
def test_a_pass_zipped_with_its_minibatches_is_a_pass(name):
    """zip() never asks for the branch after the last: it runs out of minibatches first."""
    plain, zipped = go_around(case(name), 0, 7), case(name)
    for step in range(7):
        for _, branch in zip(range(zipped.optimizer.branches), zipped.optimizer.around(), strict=False):
            assert branch == zipped.optimizer.branch
            zipped.optimizer.step(closure_for(zipped.optimizer, zipped.model, step))
    zipped.optimizer.average(), plain.optimizer.average()
    assert_same(zipped, plain)


def interrupt(each, at, stepped):
    """A pass with an exception in the body of branch ``at``, before or after its step."""
    for branch in each.optimizer.around():
        if branch != at or stepped:
            each.optimizer.step(closure_for(each.optimizer, each.model, 2))
        if branch == at:
            raise KeyboardInterrupt


def interrupted_pass(name, at, stepped):
    """Two passes, and an exception in the third."""
    each = go_around(case(name), 0, 2)
    with pytest.raises(KeyboardInterrupt):
        interrupt(each, at, stepped)
    return each


@averaging
@pytest.mark.parametrize("stepped", [False, True])
def test_after_an_exception_in_the_body_the_pass_goes_on_where_it_was_left(name, stepped):
    """Left before its step, a branch comes again; left after it, the next one does: as after loading a checkpoint saved there."""
    branches = case(name).optimizer.branches
    plain = go_around(case(name), 0, 7)
    for at in range(branches - stepped):
        each, left = interrupted_pass(name, at, stepped), []
        begun = pytest.warns(RuntimeWarning, match=rf"around\(\) was left at branch {at} of {branches}")
        with begun if at or stepped else nullcontext():
            rest = each.optimizer.around()
        for branch in rest:
            left.append(branch)
            each.optimizer.step(closure_for(each.optimizer, each.model, 2))
        assert left == list(range(at + stepped, branches))
        assert_same(go_around(each, 3, 7), plain)


@averaging
def test_after_an_exception_behind_the_last_branchs_step_the_pass_is_over(name):
    """Nothing is left of it, as where zip() ran out of minibatches."""
    each = interrupted_pass(name, case(name).optimizer.branches - 1, stepped=True)
    assert_same(go_around(each, 3, 7), go_around(case(name), 0, 7))


@pytest.mark.parametrize("name", SEVERAL)
def test_a_state_saved_after_the_last_branchs_step_leaves_no_branch_of_the_pass(name):
    whole = case(name)
    for step in range(3):
        for branch in whole.optimizer.around():
            whole.optimizer.step(closure_for(whole.optimizer, whole.model, step))
            if step == 2 and branch == whole.optimizer.branches - 1:
                saved = through_file([whole.model.state_dict(), whole.optimizer.state_dict()])
    resumed = case(name, seed=3)
    resumed.model.load_state_dict(saved[0])
    resumed.optimizer.load_state_dict(saved[1])
    assert list(resumed.optimizer.around()) == []
    go_around(whole, 3, 8), go_around(resumed, 3, 8)
    assert_same(resumed, whole)


def test_plain_steps_after_a_loop_was_broken_off_end_rounds_or_are_refused():
    param = nn.Parameter(torch.zeros(1))
    optimizer = Lookaround(SGD([param], lr=1.0), branches=2, k=2)
    for _ in optimizer.around():
        param.grad = torch.ones(1)
        optimizer.step()
        break
    assert "around()" in (_refusal(optimizer, param) or "") or optimizer.param_groups[0]["lookaround_round"] >= 4


def _refusal(optimizer, param):
    """The message with which it refuses one of twenty steps, None where it takes them."""
    try:
        for _ in range(20):
            param.grad = torch.ones(1)
            optimizer.step()
    except (ValueError, UserWarning, RuntimeWarning) as said:
        return str(said)
    return None


@pytest.mark.parametrize("passes", [1, 2])
def test_gradients_that_would_reach_another_branchs_step_are_refused(passes):
    """Accumulated over passes, the gradient of every branch would lie in the model when the first one steps."""
    weight = nn.Parameter(torch.zeros(1))
    optimizer = Lookaround(SGD([weight], lr=1.0), branches=2, k=4)

    def accumulate():
        for _ in range(passes):
            for branch in optimizer.around():
                (weight * [1.0, 10.0][branch]).sum().backward()
        for _ in optimizer.around():
            optimizer.step()

    with pytest.raises((ValueError, UserWarning, RuntimeWarning), match="gradient"):
        accumulate()


def test_gradients_accumulated_within_a_branchs_body_are_its_own():
    weight = nn.Parameter(torch.zeros(1))
    optimizer = Lookaround(SGD([weight], lr=1.0), branches=2, k=2)
    for _ in range(2):
        for branch in optimizer.around():
            optimizer.zero_grad()
            for _ in range(3):
                (weight * [-1.0, -3.0][branch]).sum().backward()
            optimizer.step()
    assert weight.item() == 2 * 3 * 2.0


def test_gradients_accumulated_in_a_loop_without_branches_reach_the_next_step():
    weight = nn.Parameter(torch.zeros(1))
    optimizer = Lookaround(SGD([weight], lr=1.0), branches=2, k=1)
    for branch in range(2):
        for _ in range(3):
            (weight * [-1.0, -3.0][branch]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert weight.item() == 6.0


def skip_the_first_turn(prepare, expected):
    """A pass whose first turn has a backward pass and no step; before the second backward pass ``prepare`` treats the gradients."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = Lookaround(SGD(model.parameters(), lr=1.0), branches=2, k=1)
    for branch in optimizer.around():
        if branch:
            prepare(model)
        (model.weight * [1.0, 10.0][branch]).sum().backward()
        if branch:
            optimizer.step()
    assert model.weight.item() == expected


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_that_the_model_has_cleared_after_a_turn_without_a_step_are_no_other_branchs(set_to_none):
    """Its zero_grad() passes the optimizer by, and zeroes in place where it is told to."""
    skip_the_first_turn(lambda model: model.zero_grad(set_to_none=set_to_none), expected=(0.0 - 10.0) / 2)


def test_gradients_that_were_only_changed_after_a_turn_without_a_step_are_another_branchs():
    with pytest.raises(ValueError, match="another branch's turn"):
        skip_the_first_turn(lambda model: nn.utils.clip_grad_norm_(model.parameters(), 0.5), expected=None)


def test_a_step_without_a_backward_pass_takes_gradients_that_were_zeroed():
    weight = nn.Parameter(torch.zeros(1))
    optimizer = Lookaround(SGD([weight], lr=1.0), branches=2, k=1)
    for branch in optimizer.around():
        if not branch:
            weight.sum().backward()
            continue
        weight.grad.zero_()
        optimizer.step()
    assert weight.item() == 0.0
