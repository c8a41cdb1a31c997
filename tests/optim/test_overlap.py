"""Averages that are taken in some passes after their round's end, on one process: every branch keeps the way it has come since."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD

from conformance.table import batch, same
from lookaround import SAM, Lookahead, Lookaround
from reference import nested_loops
from reference.late_training import Training, nesterov
from reference.problems import INNERS, Noisy, in_groups, set_gradients

PERIODS = {
    "2": lambda t: 2,
    "3": lambda t: 3,
    "5": lambda t: 5,
    "falling": lambda t: max(1, 6 - t),
    "odd": lambda t: 3 if t % 2 == 0 else 1,
}


MOVES = {
    "alpha 1": (nested_loops.alpha_step(1.0), {}),
    "alpha 0.3": (nested_loops.alpha_step(0.3), {"alpha": 0.3}),
    "alpha 0": (nested_loops.alpha_step(0.0), {"alpha": 0.0}),
    "a schedule of alpha": (nested_loops.alpha_step(0.6), {"alpha": lambda t: 0.6}),
    "outer": (nested_loops.nesterov_step(0.7, 0.9), {"outer": nesterov}),
}


def weights_now(optimizer, params):
    return [p.detach().clone() for p in params]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    branches=st.integers(1, 4),
    period=st.sampled_from(sorted(PERIODS)),
    overlap=st.integers(1, 4),
    move=st.sampled_from(sorted(MOVES)),
    inner=st.sampled_from(sorted(INNERS)),
    groups=st.integers(1, 2),
    state=st.sampled_from(["maintain", "reset"]),
    flat=st.booleans(),
)
@pytest.mark.filterwarnings("ignore:inner_state=.* is ignored:UserWarning")
def test_it_follows_the_plain_loops_step_by_step(branches, period, overlap, move, inner, groups, state, flat):
    """Each branch's weights at its turn, and what is shown after every pass."""
    k, (step_of_slow, settings_of_it) = PERIODS[period], MOVES[move]
    overlap = min(overlap, k(0) - 1)
    problem, make = Noisy(7), in_groups(INNERS[inner], groups)
    rounds = next(n for n in itertools.count() if sum(map(k, range(n))) >= 20)
    expected = nested_loops.overlapped(
        problem.start, problem.gradient, make, rounds, k, branches, overlap, step_of_slow, state
    )
    params = problem.parameters()
    optimizer = Lookaround(make(params), branches, k, inner_state=state, overlap=overlap, **settings_of_it)
    before = [problem.start] * branches
    for step, (weights, shown) in enumerate(expected):
        for branch in range(branches) if flat else optimizer.around():
            torch.testing.assert_close(weights_now(optimizer, params), before[branch], rtol=1e-10, atol=1e-10)
            set_gradients(params, problem.gradient(branch, step, params))
            optimizer.step()
        before = weights
        with optimizer.averaged():
            torch.testing.assert_close(weights_now(optimizer, params), shown, rtol=1e-10, atol=1e-10)
    assert step >= 19


def test_a_trajectory_by_hand():
    """Two branches go down by 1 and by 3 a step; k = 3, j = 1."""
    weight = nn.Parameter(torch.tensor([0.0]))
    optimizer = Lookaround(SGD([weight], lr=1.0), 2, 3, overlap=1)

    def one_pass():
        seen = []
        for branch in optimizer.around():
            optimizer.zero_grad()
            (weight * [1.0, 3.0][branch]).sum().backward()
            optimizer.step()
            seen.append(weight.item())
        with optimizer.averaged():
            return seen, weight.item()

    assert one_pass() == ([-1, -3], -2)
    assert one_pass() == ([-2, -6], -4)
    assert one_pass() == ([-3, -9], -6)  # the round ends: -3 and -9 set out
    assert one_pass() == ([-4, -12], -8)  # -6 has come: -7 and -9
    assert one_pass() == ([-8, -12], -10)
    assert one_pass() == ([-9, -15], -12)  # -9 and -15 set out
    optimizer.average()
    assert weight.item() == -12


@pytest.mark.parametrize("inner", INNERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_branch_with_alpha_one_is_the_inner_optimizer_bit_for_bit(inner, dtype):
    first, second = Noisy(5, dtype), Noisy(5, dtype)
    ours, theirs = first.parameters(), second.parameters()
    wrapped, plain = Lookaround(INNERS[inner](ours), 1, 3, overlap=2), INNERS[inner](theirs)
    for step in range(14):
        for problem, params, optimizer in ((first, ours, wrapped), (second, theirs, plain)):
            set_gradients(params, problem.gradient(0, step, params))
            optimizer.step()
        assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("k", [4, lambda t: [4, 1, 2][t % 3]], ids=["4", "changing"])
def test_minibatches_taken_together_come_to_the_same_bits(k):
    one, other = (Training(k=k).passes(0, 19, way) for way in ("around", "around batches"))
    for training in (one, other):
        training.optimizer.average()
    assert same(one.model.state_dict(), other.model.state_dict())


def test_looking_changes_nothing():
    looked, undisturbed = Training(outer=nesterov), Training(outer=nesterov)
    for step in range(15):
        for training in (looked, undisturbed):
            training.passes(step, step + 1)
        with looked.optimizer.averaged(), looked.optimizer.averaged():
            shown = looked.model.state_dict()
            assert not torch.equal(shown["body.0.weight"], undisturbed.model.state_dict()["body.0.weight"])
        looked.optimizer.eval()
        looked.optimizer.train()
        assert same(looked.end(), undisturbed.end())


def test_what_is_shown_is_what_average_leaves():
    for passes in range(1, 14):
        training = Training(alpha=0.5).passes(0, passes)
        with training.optimizer.averaged():
            shown = training.end()[0]
        training.optimizer.average()
        left = training.end()[0]
        shown.pop("body.1.num_batches_tracked"), left.pop("body.1.num_batches_tracked")
        assert same(shown, left), passes
        before = training.end()
        training.optimizer.average()
        assert same(training.end(), before)
        training.passes(passes, passes + 3)


def test_right_after_a_rounds_end_phi_itself_is_shown():
    """The outer optimizer, whose momentum would go on, makes its one step."""
    training, plain = Training(outer=nesterov, k=4), Training(outer=nesterov, k=4, overlap=0)
    for each in (training, plain):
        each.passes(0, 4)
    with training.optimizer.averaged():
        for ours, theirs in zip(training.model.parameters(), plain.model.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs)
    training.optimizer.average()
    for ours, theirs in zip(training.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_buffers_are_the_branches_own_and_their_mean_is_shown():
    """Weights that do not move: running statistics come to what averaging them at every round's end comes to."""
    late, plain = (Training(inner=lambda p: SGD(p, lr=0.0), overlap=overlap).passes(0, 18) for overlap in (3, 0))
    ends = []
    for training in (late, plain):
        with training.optimizer.averaged():
            ends.append(training.end()[0])
    assert not torch.equal(ends[0]["body.1.running_mean"], torch.zeros(5))
    for key in ("body.1.running_mean", "body.1.running_var"):
        torch.testing.assert_close(ends[0][key], ends[1][key], rtol=1e-5, atol=1e-6)
    late.optimizer.average()
    assert late.model.body[1].num_batches_tracked == 18


def test_restart_drops_what_is_under_way():
    training = Training(alpha=0.5).passes(0, 5)
    with torch.no_grad():
        for param in training.model.parameters():
            param.fill_(0.25)
    training.optimizer.restart()
    with training.optimizer.averaged():
        assert all(bool((p == 0.25).all()) for p in training.model.parameters())
    training.passes(5, 8)
    assert training.optimizer.state_dict()["param_groups"][0]["lookaround_under_way"] == 0


def test_a_round_that_ends_earlier_takes_it_in_there():
    """k goes down to 1 in the middle of a round, by hand."""
    training = Training(k=4, overlap=3).passes(0, 5)
    training.optimizer.k = 2
    problem = training.optimizer.state_dict()["param_groups"][0]
    assert (problem["lookaround_step"], problem["lookaround_under_way"]) == (1, 2)
    with training.optimizer.averaged():
        pass
    training.passes(5, 6)
    after = training.optimizer.state_dict()["param_groups"][0]
    assert (after["lookaround_round"], after["lookaround_step"], after["lookaround_under_way"]) == (2, 0, 3)


def test_alpha_below_one_that_begins_later_starts_from_a_mean():
    """No φ is kept while α is 1; set below, the average under way goes to the mean, which is φ from then on."""
    weight = nn.Parameter(torch.tensor([0.0]))
    optimizer = Lookaround(SGD([weight], lr=1.0), 2, 2, overlap=1)
    seen = []
    for step in range(6):
        if step == 2:
            optimizer.alpha = 0.5
        for branch in optimizer.around():
            optimizer.zero_grad()
            (weight * [-1.0, -3.0][branch]).sum().backward()
            optimizer.step()
        with optimizer.averaged():
            seen.append(weight.item())
    # 2 and 6 set out; at 3 and 9 their mean 4 comes: 5 and 7; 6 and 10 set out; at 7 and 13 φ = 4 + (8 - 4)/2 = 6 comes: 7 and 9.
    # Shown is what a step of α would give: 4 + (6 - 4)/2 after the third pass.
    assert seen == [2, 4, 5, 6, 7, 8]


def test_passes_before_the_first_round():
    training = Training(start=2, k=3, overlap=1).passes(0, 5)
    with training.optimizer.averaged():
        shown = training.end()[0]
    plain = Training(start=2, k=3, overlap=0).passes(0, 5)
    for key in ("body.0.weight", "body.3.bias"):
        torch.testing.assert_close(shown[key], plain.model.state_dict()[key])


def test_around_sam_and_with_parameters_that_join_later():
    training = Training(inner=lambda p: SAM(INNERS["momentum"](p)))
    new = nn.Parameter(torch.ones(2))

    def step_all(step):
        for branch in training.optimizer.around():

            def closure(step=step, branch=branch):
                training.optimizer.zero_grad()
                loss = training.model(batch(step, branch)).square().mean() + (new * (branch + 1)).square().sum()
                loss.backward()
                return loss

            training.optimizer.step(closure)

    for step in range(12):
        if step == 5:
            training.optimizer.add_param_group({"params": [new]})
        step_all(step)
    training.optimizer.average()
    assert bool((new.abs() < 1).all())
    assert all(bool(p.isfinite().all()) for p in training.model.parameters())


@pytest.mark.parametrize(
    ("given_settings", "message"),
    [
        ({"overlap": 4, "k": 4}, "overlap=4 has to be less than k=4"),
        ({"overlap": 1, "k": lambda t: 1 + t}, "overlap=1 has to be less than k=1"),
        ({"overlap": -1}, "overlap has to be at least 0, got -1"),
        ({"overlap": 1, "inner_state": "interpolate"}, "inner_state='interpolate' with overlap=1"),
    ],
)
def test_what_cannot_overlap_is_refused(given_settings, message):
    with pytest.raises(ValueError, match=message):
        Training(**given_settings)


def test_nesting_is_refused():
    params = [nn.Parameter(torch.zeros(2))]
    with pytest.raises(ValueError, match="overlap=1 around Lookahead"):
        Lookaround(Lookahead(SGD(params, lr=0.1)), 2, 3, overlap=1)
    with pytest.raises(ValueError, match="nothing that averages can be wrapped around"):
        Lookahead(Lookaround(SGD(params, lr=0.1), 1, 3, overlap=1))
    with pytest.raises(TypeError, match=r"overlap has to be an integer, got 1\.5"):
        Lookaround(SGD(params, lr=0.1), 2, 3, overlap=1.5)


def test_without_overlap_nothing_is_kept():
    training = Training(overlap=0).passes(0, 5)
    saved = training.optimizer.state_dict()
    labels = {label for entry in saved["state"].values() for label in map(str, entry)}
    assert not [label for label in labels if label.startswith(("lookaround.sent", "lookaround.mean"))]
    assert not any("under_way" in key for key in saved["param_groups"][0])
    assert (training.optimizer.overlap, Training().optimizer.overlap) == (0, 2)
