"""States that are damaged: one ValueError that says what is wrong, whatever it is, and nothing has changed."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from lookaround.averaging import SWAD, FoldedSWA, RunningAverage, SnapshotCollector, exponential, lawa, tail, uniform


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))


def running():
    average = RunningAverage(net(), [uniform(), tail(0.5), lawa(2)])
    for _ in range(3):
        average.update()
    return average


def swad():
    average = SWAD(net(), converge=2, tolerance=2)
    for loss in (2.0, 3.0, 1.0):
        average.update()
        average.evaluated(loss)
    return average


def folded():
    procedure = FoldedSWA(net(), iterations=4, cycle=1, folds=2)
    procedure.step()
    return procedure


def snapshots():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    collector = SnapshotCollector(model, torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 2))
    collector.collect()
    return collector


def paths(value, here=()):
    """Every place in nested containers."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, inner in items:
        yield (*here, key)
        yield from paths(inner, (*here, key))


def at(value, path):
    for key in path:
        value = value[key]
    return value


BROKEN = {"none": None, "negative": -1, "fraction": 2.5, "text": "x", "list": [], "mapping": {}, "true": True}


@pytest.mark.parametrize("make", [running, swad, folded, snapshots])
def test_every_missing_part_is_one_value_error(make):
    average = make()
    good = copy.deepcopy(average.state_dict())
    for path in list(paths(good)):
        if path == ("snapshots", 0):
            continue  # a collector may hold any number of them
        state = copy.deepcopy(good)
        del at(state, path[:-1])[path[-1]]
        with pytest.raises(ValueError):
            make().load_state_dict(state)
        with pytest.raises(ValueError):
            average.load_state_dict(state)
        assert str(average.state_dict()) == str(good), path


@pytest.mark.parametrize("make", [running, swad, folded, snapshots])
@pytest.mark.parametrize("broken", BROKEN)
def test_every_part_of_another_kind_is_one_value_error_or_means_the_same(make, broken):
    average = make()
    good = copy.deepcopy(average.state_dict())
    for path in list(paths(good)):
        state = copy.deepcopy(good)
        at(state, path[:-1])[path[-1]] = copy.deepcopy(BROKEN[broken])
        if (
            at(state, path[:-1])[path[-1]] == at(good, path[:-1])[path[-1]]
            if not torch.is_tensor(at(good, path))
            else False
        ):
            continue  # it is what it was
        try:
            average.load_state_dict(state)
        except ValueError:
            assert str(average.state_dict()) == str(good), path
            continue
        # What is left: numbers, yes or no, and no snapshots, of which others are possible too.
        assert path[-1] in ("loss", "limit", "above", "closed", "phase") or path == ("snapshots",), (path, broken)
        average.load_state_dict(good)


@pytest.mark.parametrize("make", [running, swad, folded, snapshots])
@pytest.mark.parametrize("state", [None, 3, [], "state", torch.ones(1)])
def test_what_is_no_state_at_all_is_refused(make, state):
    with pytest.raises(ValueError, match="not a state of"):
        make().load_state_dict(state)


@pytest.mark.parametrize("count", [-1, 2.5, True, "2", None, torch.tensor([1, 2]), torch.tensor(1.5), torch.tensor(-1)])
def test_counts_that_count_nothing_are_refused(count):
    average = running()
    state = {**copy.deepcopy(average.state_dict()), "count": count}
    with pytest.raises(ValueError, match="count must be a whole number of at least 0"):
        average.load_state_dict(state)
    theirs = {**AveragedModel(net()).state_dict(), "n_averaged": count}
    ema = RunningAverage(net(), exponential(0.9))
    with pytest.raises(ValueError, match="n_averaged must be a whole number of at least 0"):
        ema.load_averaged_model_state(theirs)
    assert (average.count, ema.count) == (3, 0)


def test_lengths_that_do_not_fit_the_count_are_refused():
    average = running()
    for lengths in ([4], [0]):
        state = copy.deepcopy(average.state_dict())
        state["averages"][0]["lengths"] = lengths
        with pytest.raises(ValueError, match=r"cannot be of 3"):
            average.load_state_dict(state)
