"""Averages that are taken in some passes after their round's end, on one process: every branch keeps the way it has come since."""

import copy
import io
import itertools
import pickle
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD

from conformance.table import Net, batch, same
from lookaround import SAM, Lookahead, Lookaround
from reference import nested_loops
from reference.problems import INNERS, Noisy, in_groups, set_gradients

PERIODS = {
    "2": lambda t: 2,
    "3": lambda t: 3,
    "5": lambda t: 5,
    "falling": lambda t: max(1, 6 - t),
    "odd": lambda t: 3 if t % 2 == 0 else 1,
}


def nesterov(params):
    return SGD(params, lr=0.7, momentum=0.9, nesterov=True)


MOVES = {
    "alpha 1": (nested_loops.alpha_step(1.0), {}),
    "alpha 0.3": (nested_loops.alpha_step(0.3), {"alpha": 0.3}),
    "alpha 0": (nested_loops.alpha_step(0.0), {"alpha": 0.0}),
    "a schedule of alpha": (nested_loops.alpha_step(0.6), {"alpha": lambda t: 0.6}),
    "outer": (nested_loops.nesterov_step(0.7, 0.9), {"outer": nesterov}),
}


def weights_now(optimizer, params):
    return [p.detach().clone() for p in params]


def loops(way, optimizer, passes):
    """All (step, branch) of the passes, in the order in which a training loop of some kind comes to them."""
    if way == "around":
        return ((step, branch) for step in range(passes) for branch in optimizer.around())
    if way == "around batches":
        return optimizer.around(range(passes))
    return ((step, branch) for step in range(passes) for branch in range(optimizer.branches))


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


class Training:
    """A network with running statistics, trained by branches."""

    def __init__(self, branches=3, k=4, overlap=2, inner=INNERS["nesterov"], **settings):
        self.model = Net()
        settings.setdefault("model", self.model)
        self.optimizer = Lookaround(inner(list(self.model.parameters())), branches, k, overlap=overlap, **settings)

    def turn(self, step, branch, factor=1.0):
        self.optimizer.zero_grad()
        (self.model(batch(step, branch)).square().mean() * factor).backward()
        self.optimizer.step()

    def passes(self, first, last, way="around"):
        steps = range(first, last)
        if way == "around batches":
            for step, branch in self.optimizer.around(steps):
                self.turn(step, branch)
        else:
            for step in steps:
                for branch in self.optimizer.around() if way == "around" else range(self.optimizer.branches):
                    self.turn(step, branch)
        return self

    def end(self):
        return {k: v.clone() for k, v in self.model.state_dict().items()}, copy.deepcopy(self.optimizer.state_dict())


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


SAVED = {
    "plain": {},
    "alpha": {"alpha": 0.6},
    "outer": {"outer": nesterov, "inner_state": "reset"},
    "alpha changes": {"alpha": lambda t: [1.0, 0.5][t % 2]},
}


@pytest.mark.parametrize("name", SAVED)
def test_it_goes_on_from_every_point_bit_for_bit(name):
    """From files, copies and pickles, between passes and in the middle of them."""
    undisturbed = Training(**SAVED[name])
    for step in range(10):
        for branch in undisturbed.optimizer.around():
            undisturbed.turn(step, branch)
            if (step, branch) in ((5, 0), (5, 2)):
                check_goes_on(undisturbed, step, SAVED[name])
        if step in (2, 3, 4, 5, 7):
            check_goes_on(undisturbed, step, SAVED[name], between=True)


def check_goes_on(training, step, settings, *, between=False):
    file = io.BytesIO()
    torch.save({"model": training.model.state_dict(), "optimizer": training.optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    fresh, stale = Training(**settings), Training(**settings).passes(0, step % 6)
    twins = [fresh, stale]
    for twin in twins:
        twin.model.load_state_dict(saved["model"])
        twin.optimizer.load_state_dict(copy.deepcopy(saved["optimizer"]))
        assert same(twin.optimizer.state_dict(), training.optimizer.state_dict())
    if between:
        twins.append(copy.deepcopy(training))
    if between and not settings:  # a lambda cannot be pickled
        twins.append(pickle.loads(pickle.dumps(training)))
    for twin in twins:
        for now in range(step if not between else step + 1, step + 6):
            for branch in twin.optimizer.around():
                twin.turn(now, branch)
        twin.optimizer.average()
    ends = [twin.end() for twin in twins]
    assert all(same(ends[0], end) for end in ends[1:])
    goes_on = Training(**settings).passes(0, step + 6)
    goes_on.optimizer.average()
    assert same(ends[0], goes_on.end())


def test_a_checkpoint_that_was_cut_or_of_another_kind_is_refused():
    training = Training().passes(0, 5)
    saved = copy.deepcopy(training.optimizer.state_dict())
    with pytest.raises(ValueError, match="while an average was under way: build the optimizer with overlap="):
        Training(overlap=0).optimizer.load_state_dict(saved)
    for label in ("sent.1", "mean"):
        cut = copy.deepcopy(saved)
        for entry in cut["state"].values():
            del entry[f"lookaround.{label}"]
        other = Training().passes(0, 5)
        with pytest.raises(ValueError, match="the checkpoint lacks"):
            other.optimizer.load_state_dict(cut)
        assert same(other.end(), training.end())
    later = Training().passes(0, 7)  # taken in by then
    Training(overlap=0).optimizer.load_state_dict(later.optimizer.state_dict())


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


def test_a_branch_that_diverges_is_left_out_and_comes_back_with_another_ones_inner_state_and_buffers():
    training = Training(branches=3, k=3, overlap=2).passes(0, 2)
    for branch in training.optimizer.around():
        training.turn(2, branch, float("inf") if branch == 1 else 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once, when the average has come
        with training.optimizer.averaged():
            assert all(bool(t.isfinite().all()) for t in training.model.state_dict().values())
        for branch in training.optimizer.around():
            training.turn(3, branch)
    saved = copy.deepcopy((training.model.state_dict(), training.optimizer.state_dict()))
    twin = Training(branches=3, k=3, overlap=2)
    twin.model.load_state_dict(saved[0])
    twin.optimizer.load_state_dict(saved[1])
    for each in (training, twin):
        with pytest.warns(
            RuntimeWarning, match="branch 1 of 3 has weights that are infinite or NaN.* average of round 0"
        ):
            each.passes(4, 5)
        state = each.optimizer.state_dict()["state"]
        leaves = [v for entry in state.values() for k, v in entry.items() if "sent" not in k and k != "step"]
        assert all(bool(leaf.isfinite().all()) for leaf in leaves)
        each.passes(5, 9)
    assert same(training.end(), twin.end())


def test_where_no_branch_is_finite_the_average_says_so():
    training = Training(k=2, overlap=1).passes(0, 1)
    turns = training.optimizer.around()
    for _ in range(3):
        training.turn(1, next(turns), float("nan"))
    with pytest.raises(ValueError, match="all 3 branches are infinite or NaN"):
        next(turns)


def test_skipped_steps_count_as_passes():
    """A pass in which the scaler skips every step, and one in which it skips one."""
    training = Training(branches=2, k=3, overlap=2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    places = []
    for step in range(7):
        for branch in training.optimizer.around():
            training.optimizer.zero_grad()
            loss = training.model(batch(step, branch)).square().mean()
            skipped = step in (0, 4) or (step, branch) == (3, 0)
            scaler.scale(loss * float("inf") if skipped else loss).backward()
            scaler.step(training.optimizer)
            scaler.update()
        group = training.optimizer.state_dict()["param_groups"][0]
        places.append(tuple(group[f"lookaround_{key}"] for key in ("round", "step", "under_way")))
    assert places == [(0, 1, 0), (0, 2, 0), (1, 0, 2), (1, 1, 1), (1, 2, 0), (2, 0, 2), (2, 1, 1)]


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
