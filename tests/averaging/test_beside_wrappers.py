"""Averages over time beside Lookahead and Lookaround: they sample the average of the branches, not the branch in the model."""

import pytest
import torch
from torch import nn

from lookaround import Lookahead, Lookaround
from lookaround.averaging import SWAD, FoldedSWA, RunningAverage, uniform


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
    branch = RunningAverage(model, uniform())
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
