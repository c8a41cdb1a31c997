"""Averages over time beside Lookahead and Lookaround: they sample the average of the branches, not the branch in the model."""

import copy
import gc
import pickle
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from lookaround import SAM, Lookahead, Lookaround
from lookaround.averaging import (
    SWAD,
    FoldedSWA,
    RunningAverage,
    SnapshotCollector,
    SwitchEMA,
    exponential,
    lawa,
    power,
    tail,
    uniform,
)


def lookaround(model):
    return Lookaround(torch.optim.SGD(model.parameters(), lr=1.0), branches=2, k=2)


def around(model, optimizer, gradients):
    for branch in optimizer.around():
        optimizer.zero_grad()
        (gradients[branch] * model.weight).sum().backward()
        optimizer.step()


def test_after_around_the_average_is_sampled_and_not_the_last_branch():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = lookaround(model)
    averages = [
        RunningAverage(model, uniform(), point=optimizer.averaged),
        SWAD(model, converge=1, point=optimizer.averaged),
        FoldedSWA(model, iterations=9, cycle=1, point=optimizer.averaged).average,
    ]
    branch = RunningAverage(model, uniform(), point=nullcontext)
    expected, seen = [], []
    # Branches move by -1 and -3 in each of the two steps of a round, which ends with their mean.
    for step in (1, 2, 3):
        around(model, optimizer, (1.0, 3.0))
        expected.append(-2.0 * step)
        seen.append(model.weight.item())
        for average in (*averages, branch):
            average.update()
        assert model.weight.item() == seen[-1]
    averages[1].evaluated(1.0)
    for average in averages:
        with average.averaged():
            assert model.weight.item() == pytest.approx(sum(expected) / 3)
    assert seen[0] in (-1.0, -3.0)  # a branch: the round of two steps has not ended
    assert seen[1] == -4.0
    with branch.averaged():
        assert model.weight.item() == pytest.approx(sum(seen) / 3)


def test_beside_lookahead_the_slow_weights_are_sampled():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = Lookahead(torch.optim.SGD(model.parameters(), lr=1.0), k=2, alpha=0.5)
    average = RunningAverage(model, uniform(), point=optimizer.averaged)
    points = []
    for _ in range(3):
        optimizer.zero_grad()
        model.weight.sum().backward()
        optimizer.step()
        with optimizer.averaged():
            points.append(model.weight.item())
        average.update()
    with average.averaged():
        assert model.weight.item() == pytest.approx(sum(points) / 3)


@pytest.mark.parametrize("make", [lambda m, p: RunningAverage(m, uniform(), point=p), lambda m, p: SWAD(m, point=p)])
def test_a_point_that_is_no_context_is_refused_at_once(make):
    model = nn.Linear(1, 1)
    optimizer = lookaround(model)
    for wrong in (optimizer.averaged(), 3):
        with pytest.raises(TypeError, match=r"pass optimizer\.averaged, not called"):
            make(model, wrong)


def zero_model(size=1):
    model = nn.Linear(size, 1, bias=False)
    nn.init.zeros_(model.weight)
    return model


def step(model, optimizer):
    optimizer.zero_grad()
    model.weight.sum().backward()
    optimizer.step()


def shown(optimizer, model):
    with optimizer.averaged():
        return model.weight.detach().clone()


WRAPPERS = {
    "lookaround": lambda inner: Lookaround(inner, branches=3, k=2),
    "lookahead": lambda inner: Lookahead(inner, k=3, alpha=0.5),
    "around a lookahead": lambda inner: Lookaround(Lookahead(inner, k=2), branches=2, k=3),
    "in a SAM": lambda inner: SAM(Lookahead(inner, k=3, alpha=0.5), rho=0.1),
    "an outer optimizer": lambda inner: Lookahead(inner, k=3, outer=lambda p: torch.optim.SGD(p, lr=0.7)),
}
AVERAGES = {
    "uniform": lambda model, **options: RunningAverage(model, uniform(), **options),
    "exponential": lambda model, **options: RunningAverage(model, exponential(0.5), **options),
    "tail": lambda model, **options: RunningAverage(model, tail(0.5), **options),
    "lawa": lambda model, **options: RunningAverage(model, lawa(2), **options),
    "power": lambda model, **options: RunningAverage(model, power(0.1), **options),
    "swad": lambda model, **options: SWAD(model, converge=1, **options),
    "folds": lambda model, **options: FoldedSWA(model, iterations=99, cycle=1, **options),
}


def take(average):
    average.update() if hasattr(average, "update") else average.step()


def result(average, model):
    if isinstance(average, SWAD):
        average.evaluated(1.0)
    with getattr(average, "average", average).averaged():
        return model.weight.detach().clone()


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize("make", AVERAGES.values(), ids=AVERAGES)
def test_without_being_told_the_average_is_sampled_at_every_place_of_a_round(make, wrap):
    model = zero_model(2)
    inner = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    optimizer = wrap(inner)
    told, untold = make(model, point=optimizer.averaged), make(model)
    differed = False
    for number in range(11):
        optimizer.zero_grad()
        ((number % 3 + 1) * model.weight * torch.tensor([1.0, -2.0])).sum().backward()
        optimizer.step(*([lambda: None] if isinstance(optimizer, SAM) else []))
        before = model.weight.detach().clone()
        differed = differed or not torch.equal(before, shown(optimizer, model))
        take(told)
        take(untold)
        assert torch.equal(model.weight, before)
    assert differed
    assert torch.equal(result(untold, model), result(told, model))


def test_in_the_body_of_the_loop_over_branches_the_average_is_sampled():
    model = zero_model()
    optimizer = lookaround(model)
    average = RunningAverage(model, lawa(1))
    seen = []
    for branch in optimizer.around():
        optimizer.zero_grad()
        ((1.0, 3.0)[branch] * model.weight).sum().backward()
        optimizer.step()
        average.update()
        with average.averaged():
            seen.append(model.weight.item())
    assert seen == [-0.5, -2.0]  # the mean of -1 and 0, then of -1 and -3


def test_a_snapshot_is_of_the_average():
    model = zero_model()
    optimizer = lookaround(model)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=2)
    told = SnapshotCollector(model, scheduler, point=nullcontext)
    untold = SnapshotCollector(model, scheduler)
    around(model, optimizer, (1.0, 3.0))
    told.collect()
    untold.collect()
    assert told.snapshots[0]["weight"].item() in (-1.0, -3.0)
    assert untold.snapshots[0]["weight"].item() == -2.0
    with pytest.raises(TypeError, match="not called"):
        SnapshotCollector(model, scheduler, point=optimizer.averaged())


COPIES = {"pickled": lambda of: pickle.loads(pickle.dumps(of)), "deepcopied": copy.deepcopy}


@pytest.mark.parametrize("again", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("wrap", [WRAPPERS["lookaround"], WRAPPERS["around a lookahead"]])
def test_beside_a_copy_of_model_and_optimizer_the_copys_average_is_sampled(again, wrap):
    model = zero_model()
    optimizer = wrap(torch.optim.SGD(model.parameters(), lr=1.0))
    step(model, optimizer)
    twin, twins = again([model, optimizer])
    twins.param_groups[0]["lr"] = 2.0
    average = RunningAverage(twin, lawa(1))
    step(twin, twins)
    average.update()
    expected = shown(twins, twin)
    assert not torch.equal(expected, shown(optimizer, model))
    assert torch.equal(result(average, twin), expected)


def test_a_shallow_copy_is_the_same_optimizer_and_stands_for_it():
    model = zero_model()
    optimizer = lookaround(model)
    twin = copy.copy(optimizer)
    average = RunningAverage(model, lawa(1))
    step(model, optimizer)
    average.update()
    assert result(average, model).item() == -0.5
    del optimizer
    average.update()
    assert result(average, model).item() == -0.5 == shown(twin, model).item()


def test_a_deleted_optimizer_is_forgotten_at_once():
    """Not at the next collection of cycles: until then the average would be of branches that nobody trains."""
    gc.collect()
    gc.disable()
    try:
        for wrap in (WRAPPERS["lookaround"], WRAPPERS["lookahead"], WRAPPERS["around a lookahead"]):
            model = zero_model()
            optimizer = wrap(torch.optim.SGD(model.parameters(), lr=1.0))
            average = RunningAverage(model, lawa(1))
            step(model, optimizer)
            del optimizer
            nn.init.constant_(model.weight, 7.0)
            average.update()
            with average.averaged():
                assert model.weight.item() == 7.0
    finally:
        gc.enable()


def test_optimizers_of_parts_of_a_model_are_both_asked():
    model = nn.ModuleList([zero_model(), zero_model()])
    first, second = lookaround(model[0]), Lookahead(torch.optim.SGD(model[1].parameters(), lr=1.0), k=2, alpha=0.5)
    average = RunningAverage(model, uniform())
    step(model[0], first)
    step(model[1], second)
    average.update()
    with average.averaged():
        assert [part.weight.item() for part in model] == [-0.5, -0.5]


def test_two_optimizers_in_the_middle_of_a_round_with_the_same_weights_are_refused():
    model = zero_model()
    left, trains = lookaround(model), lookaround(model)
    average = RunningAverage(model, uniform())
    step(model, left)
    step(model, trains)
    with pytest.raises(ValueError, match=r"two optimizers in the middle of a round.*point=optimizer\.averaged"):
        average.update()
    assert average.count == 0
    left.average()
    average.update()
    assert average.count == 1


def test_an_optimizer_of_other_weights_and_one_at_a_rounds_start_change_nothing():
    model, other = zero_model(), zero_model()
    elsewhere, ended = lookaround(other), lookaround(model)
    step(other, elsewhere)
    step(model, ended)
    ended.average()
    nn.init.constant_(model.weight, 3.0)
    average = RunningAverage(model, uniform())
    average.update()
    with average.averaged():
        assert model.weight.item() == 3.0


def test_branches_over_processes_are_asked_for_by_all_of_them_and_so_never_unasked():
    model = zero_model()
    holder = lookaround(model)
    holder._run.branches.local = range(1)
    average = RunningAverage(model, uniform())
    with pytest.raises(ValueError, match=r"spread over processes.*point=optimizer\.averaged"):
        average.update()
    RunningAverage(model, uniform(), point=nullcontext).update()
    holder._run.shown += 1
    average.update()
    assert average.count == 1


def test_folds_and_switches_have_a_wrapper_go_on_from_what_they_write():
    """Without being told: φ is kept where α is below 1, and would pull back the weights that were written."""
    for procedure in (
        lambda model, **o: FoldedSWA(model, iterations=6, cycle=1, folds=3, **o),
        lambda model, **o: SwitchEMA(model, every=2, rule=uniform(), **o),
    ):
        trajectories = []
        for told in (True, False):
            model = zero_model()
            optimizer = Lookahead(torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.5), k=3, alpha=0.5)
            options = {"point": optimizer.averaged, "restart": optimizer.restart} if told else {}
            running, seen = procedure(model, **options), []
            for _ in range(6):
                step(model, optimizer)
                running.step()
                seen.append(model.weight.item())
            trajectories.append(seen)
        assert trajectories[0] == trajectories[1]
