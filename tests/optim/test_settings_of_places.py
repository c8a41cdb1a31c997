"""`around(batches)` puts back for the other branches what a scheduler changes in the first one's turn: each place has its settings."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import SGD

from lookaround import Lookahead, Lookaround


def rate_of(optimizer):
    return optimizer.param_groups[0]["lr"]


def halved(optimizer):
    for group in optimizer.param_groups:
        group["lr"] *= 0.5


def stepped(optimizer, *weights):
    for weight in weights:
        weight.grad = torch.ones(1)
    optimizer.step()


def one_weight(branches=2, k=3, wrap=lambda inner: inner):
    weight = nn.Parameter(torch.zeros(1))
    return weight, Lookaround(wrap(SGD([weight], lr=1.0)), branches, k=k)


def test_settings_of_places_stand_in_a_state_dict_alone():
    weight, optimizer = one_weight()
    for at, branch in optimizer.around(range(3)):
        stepped(optimizer, weight)
        if branch == 0:
            halved(optimizer)
        if (at, branch) == (1, 1):
            saved = copy.deepcopy(optimizer.state_dict()["param_groups"][0])
        assert not [key for key in optimizer.param_groups[0] if "replay" in key]
    rates = {key.removeprefix("lookaround_replay."): value for key, value in saved.items() if "replay" in key}
    assert rates == {"0.lr": 1.0, "1.lr": 0.5, "2.lr": 0.25, "next.lr": 0.125}
    assert not [key for key in optimizer.state_dict()["param_groups"][0] if "replay" in key]


def test_what_was_saved_is_what_is_loaded_where_wrappers_inside_count_too():
    def inside(inner):
        return Lookahead(inner, k=2)

    for stop in range(12):
        weight, optimizer = one_weight(wrap=inside)
        for turn, _ in enumerate(optimizer.around(range(6))):
            stepped(optimizer, weight)
            if turn == stop:
                saved = copy.deepcopy(optimizer.state_dict())
                break
        _, again = one_weight(wrap=inside)
        again.load_state_dict(saved)
        for _ in range(2):  # looking changes nothing
            found = again.state_dict()["param_groups"][0]
            assert {key: found[key] for key in found if key != "params"} == {
                key: value for key, value in saved["param_groups"][0].items() if key != "params"
            }, stop


def test_a_group_that_comes_in_the_first_branchs_turn_has_one_rate_a_place_in_all_others():
    weight, optimizer = one_weight(branches=3)
    late = nn.Parameter(torch.zeros(1))
    seen = {branch: [] for branch in range(3)}
    for at, branch in optimizer.around(range(6)):
        seen[branch].append([group["lr"] for group in optimizer.param_groups])
        stepped(optimizer, weight, late)
        if (at, branch) == (1, 0):
            optimizer.add_param_group({"params": [late], "lr": 0.1})
        if branch == 0:
            halved(optimizer)
    first = [[1.0], [0.5], [0.25, 0.05], [0.125, 0.025], [0.0625, 0.0125], [0.03125, 0.00625]]
    assert seen[0] == first
    others = [[1.0, 0.05], [0.5, 0.05], *first[2:]]  # where it was not there yet, its first rate
    assert seen[1] == others
    assert seen[2] == others


def test_a_setting_that_comes_in_the_first_branchs_turn_is_the_same_in_all_others():
    weight, optimizer = one_weight(branches=3)
    seen = {branch: [] for branch in range(3)}
    for at, branch in optimizer.around(range(3)):
        seen[branch].append(optimizer.param_groups[0].get("note"))
        stepped(optimizer, weight)
        if branch == 0:
            optimizer.param_groups[0]["note"] = 10 * (at + 1)
    assert seen == {0: [None, 10, 20], 1: [10, 10, 20], 2: [10, 10, 20]}
    assert optimizer.param_groups[0]["note"] == 30


def gone_on_in_branch_1(k, minibatches):
    """A weight and an optimizer that has loaded what was saved after branch 1's first step; branch 0 has halved the rate each time."""
    weight, optimizer = one_weight(k=k)
    for _, branch in optimizer.around(range(minibatches)):
        stepped(optimizer, weight)
        if branch == 1:
            break
        halved(optimizer)
    weight, again = one_weight(k=k)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return weight, again


def test_a_setting_written_between_loading_and_going_on_holds_from_there_on():
    weight, optimizer = gone_on_in_branch_1(k=2, minibatches=4)
    optimizer.param_groups[0]["weight_decay"] = 0.5
    for at, branch in optimizer.around(range(6)):
        assert optimizer.param_groups[0]["weight_decay"] == 0.5, (at, branch)
        stepped(optimizer, weight)
        if branch == 0:
            halved(optimizer)
        if (at, branch) == (1, 1):
            optimizer.param_groups[0]["note"] = 1  # is no setting of others


def test_going_on_with_more_minibatches_than_the_first_branch_had_keeps_the_rate_that_holds():
    weight, optimizer = gone_on_in_branch_1(k=4, minibatches=2)
    rates = []
    for _ in optimizer.around(range(4)):
        rates.append(rate_of(optimizer))
        stepped(optimizer, weight)
    assert rates == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("scheduled", [False, True])
def test_a_scheduler_stepped_in_half_a_pass_before_is_none_out_of_turn(scheduled):
    weight, optimizer = one_weight(k=2)
    for _, branch in optimizer.around(range(2)):
        stepped(optimizer, weight)
        if scheduled and branch == 0:
            halved(optimizer)
    rate = rate_of(optimizer)
    stepped(optimizer, weight)  # a flat step: it is branch 1's turn
    halved(optimizer)
    for _ in optimizer.around(range(1)):
        assert rate_of(optimizer) == rate / 2
        stepped(optimizer, weight)


def test_places_that_are_none_in_a_checkpoint_are_passed_over():
    weight, optimizer = one_weight()
    for _ in optimizer.around(range(3)):
        stepped(optimizer, weight)
        halved(optimizer)
        saved = copy.deepcopy(optimizer.state_dict())
        break
    saved["param_groups"][0]["lookaround_replay.best.lr"] = 0.1
    weight, optimizer = one_weight()
    optimizer.load_state_dict(saved)
    rates = []
    for _, branch in optimizer.around(range(3)):
        rates.append(rate_of(optimizer))
        stepped(optimizer, weight)
        if branch == 0:
            halved(optimizer)
    assert rates == [0.5, 0.25, 1.0, 0.5, 0.25]


@pytest.mark.parametrize("rate", [1.0, torch.tensor(1.0)])
@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize("at", [0, 2])
def test_another_setting_written_out_of_turn_is_refused_whatever_the_rate_is(rate, scheduled, at):
    weight = nn.Parameter(torch.zeros(1))
    optimizer = Lookaround(SGD([weight], lr=copy.deepcopy(rate)), 2, k=3)

    def train():
        for place, branch in optimizer.around(range(3)):
            stepped(optimizer, weight)
            if scheduled and branch == 0:
                halved(optimizer)
            if (place, branch) == (at, 1):
                optimizer.param_groups[0]["weight_decay"] = 0.5

    with pytest.raises(ValueError, match="'weight_decay' was changed in the turn of branch 1"):
        train()


@pytest.mark.parametrize("write", [lambda rate: rate.mul_(0.5), lambda rate: rate.mul_(2).mul_(0.5)])
def test_a_rate_in_a_tensor_written_out_of_turn_is_refused_if_it_is_another(write):
    weight = nn.Parameter(torch.zeros(1))
    optimizer = Lookaround(SGD([weight], lr=torch.tensor(1.0)), 2, k=3)
    changed = write(torch.tensor(1.0)) != 1

    def train():
        for place, branch in optimizer.around(range(3)):
            stepped(optimizer, weight)
            if branch == 0:
                optimizer.param_groups[0]["lr"].mul_(0.5)
            elif place == 1:
                write(optimizer.param_groups[0]["lr"])

    if changed:
        with pytest.raises(ValueError, match="'lr' was changed in the turn of branch 1"):
            train()
    else:
        train()


def test_a_setting_that_is_taken_out_in_another_branchs_turn_is_put_back():
    weight, optimizer = one_weight(k=2)
    optimizer.param_groups[0]["note"] = 0
    for place, branch in optimizer.around(range(4)):
        stepped(optimizer, weight)
        if branch == 0:
            optimizer.param_groups[0]["note"] = place + 1
        elif place == 1:
            del optimizer.param_groups[0]["note"]
    assert optimizer.param_groups[0]["note"] == 4


def test_a_checkpoint_that_is_refused_leaves_the_settings_of_places_as_they_were():
    weight = nn.Parameter(torch.zeros(1))
    optimizer = Lookaround(SGD([weight], lr=1.0), 2, k=3, overlap=1)
    rates = []
    for place, branch in optimizer.around(range(9)):
        rates.append((place, branch, rate_of(optimizer)))
        stepped(optimizer, weight)
        if branch == 0:
            halved(optimizer)
        if (place, branch) == (4, 1):
            wrong = copy.deepcopy(optimizer.state_dict())
            wrong["state"][0] = {k: v for k, v in wrong["state"][0].items() if "branch.1.weights" not in k}
            with pytest.raises(ValueError, match="lacks"):
                optimizer.load_state_dict(wrong)
    at_place = {place: rate for place, branch, rate in rates if branch == 0}
    assert all(rate == at_place[place] for place, _, rate in rates)
