"""Averages over time that write themselves into the model, beside averages of branches that come late."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.optim import SGD

from conformance.table import same
from lookaround import Lookaround
from lookaround.averaging import FoldedSWA, SwitchEMA, exponential
from reference.late_training import Training, nesterov

K, LATE = 3, 2


class Falling:
    """Two branches that go down by 1 and by 3 a step: their average goes down by 2, wherever a round ends or an average comes."""

    def __init__(self, flat):
        self.weight, self.flat, self.seen = nn.Parameter(torch.tensor([0.0])), flat, []
        self.model = nn.ParameterList([self.weight])
        self.optimizer = Lookaround(SGD([self.weight], lr=1.0), 2, K, overlap=LATE)

    def turn(self, branch):
        self.optimizer.zero_grad()
        (self.weight * [1.0, 3.0][branch]).sum().backward()
        self.optimizer.step()

    def one_pass(self):
        ways = []
        for branch in range(2) if self.flat else self.optimizer.around():
            self.turn(branch)
            ways.append(self.weight.item())
        self.seen = ways

    @property
    def under_way(self):
        return self.optimizer.state_dict()["param_groups"][0]["lookaround_under_way"]


@pytest.mark.parametrize("flat", [False, True])
def test_folds_that_end_while_an_average_is_under_way_by_hand(flat):
    falling = Falling(flat)
    swa = FoldedSWA(falling.model, iterations=8, cycle=2, folds=2)
    for step in range(8):
        falling.one_pass()
        if step == 3:
            assert falling.under_way == 1
        assert swa.step() == (step in (3, 7))
        if step == 3:  # the mean of -4 and -8; what was under way is of before
            assert (falling.weight.item(), falling.under_way) == (-6, 0)
        if step == 4 and not flat:
            assert falling.seen == [-7, -9]
    assert falling.weight.item() == -12  # the mean of -6 - 4 and -6 - 8
    with falling.optimizer.averaged():
        assert falling.weight.item() == -12
    falling.optimizer.average()
    assert falling.weight.item() == -12


@pytest.mark.parametrize("flat", [False, True])
def test_switches_while_an_average_is_under_way_by_hand(flat):
    falling = Falling(flat)
    switch = SwitchEMA(falling.model, every=4, rule=exponential(0.5))
    ends = []
    for step in range(8):
        falling.one_pass()
        assert switch.step() == (step % 4 == 3)
        with falling.optimizer.averaged():
            ends.append(falling.weight.item())
    # Points -2, -4, -6, -8: -2, -3, -4.5, -6.25, from which -8.25, … goes on: -7.25, -8.75, -10.5, -12.375.
    assert ends == [-2, -4, -6, -6.25, -8.25, -10.25, -12.25, -12.375]


PROCEDURES = {
    "switches": lambda model: SwitchEMA(model, every=5, rule=exponential(0.7)),
    "folds": lambda model: FoldedSWA(model, iterations=20, cycle=2, folds=4),
}
SETTINGS = {"plain": {}, "alpha": {"alpha": 0.5}, "outer": {"outer": nesterov, "inner_state": "reset"}}


class Both:
    """A training, and what stands beside it."""

    def __init__(self, procedure, settings):
        self.training = Training(branches=2, k=4, overlap=3, **settings)
        self.beside = PROCEDURES[procedure](self.training.model)

    def passes(self, first, last):
        for step in range(first, last):
            self.training.passes(step, step + 1)
            self.beside.step()
        return self

    def end(self):
        return *self.training.end(), copy.deepcopy(self.beside.state_dict())


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("procedure", PROCEDURES)
def test_they_go_on_from_every_pass_bit_for_bit(procedure, name):
    """After switches and folds' ends, and between; from files and copies."""
    undisturbed = Both(procedure, SETTINGS[name])
    for step in range(11):
        undisturbed.passes(step, step + 1)
        file = io.BytesIO()
        torch.save(undisturbed.end(), file)
        file.seek(0)
        twin, saved = Both(procedure, SETTINGS[name]), torch.load(file, weights_only=True)
        for part, state in zip((twin.training.model, twin.training.optimizer, twin.beside), saved, strict=True):
            part.load_state_dict(state)
        goes_on = Both(procedure, SETTINGS[name]).passes(0, step + 7)
        assert same(twin.passes(step + 1, step + 7).end(), goes_on.end()), step
        assert same(copy.deepcopy(undisturbed).passes(step + 1, step + 7).end(), goes_on.end()), step


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("procedure", PROCEDURES)
def test_they_are_what_a_loop_by_hand_makes_of_what_is_shown(procedure, name):
    ours, theirs = Both(procedure, SETTINGS[name]), Training(branches=2, k=4, overlap=3, **SETTINGS[name])
    mean, points = {}, 0
    for step in range(20):
        ours.passes(step, step + 1)
        theirs.passes(step, step + 1)
        within = step % 5
        if procedure == "folds" and within == 0:
            points = 0
        if procedure == "switches" or within in (1, 3):
            with theirs.optimizer.averaged():
                shown = {k: v.clone() for k, v in theirs.model.state_dict().items() if v.is_floating_point()}
            points += 1
            share = 1 / points if procedure == "folds" or points == 1 else 0.3
            mean = {k: mean[k] + share * (v - mean[k]) if points > 1 else v for k, v in shown.items()}
        if within == 4:
            theirs.model.load_state_dict(mean, strict=False)
            theirs.optimizer.restart()
        with ours.training.optimizer.averaged(), theirs.optimizer.averaged():
            for (key, one), other in zip(ours.training.end()[0].items(), theirs.end()[0].values(), strict=True):
                if one.is_floating_point():
                    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6, msg=lambda m, key=key: f"{key} {m}")
