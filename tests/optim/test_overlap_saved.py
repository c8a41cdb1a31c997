"""Checkpoints while an average is under way, and what goes astray meanwhile."""

import copy
import io
import pickle
import warnings

import pytest
import torch

from conformance.table import batch, same
from reference.late_training import Training, nesterov

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
