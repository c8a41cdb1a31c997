"""What a user may pass: one message that names the value and says what is allowed."""

import math

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD

from lookaround import SAM, Lookahead, Lookaround


def sgd():
    return SGD([nn.Parameter(torch.zeros(1))], lr=0.1)


VALUES = {
    "k=0": (lambda: Lookahead(sgd(), k=0), "k has to be at least 1, got 0"),
    "k=-3": (lambda: Lookaround(sgd(), k=-3), "k has to be at least 1, got -3"),
    "k(0)=0": (lambda: Lookaround(sgd(), k=lambda t: 0), r"k\(0\) has to be at least 1, got 0"),
    "branches=0": (lambda: Lookaround(sgd(), branches=0), "branches has to be at least 1, got 0"),
    "start=-1": (lambda: Lookaround(sgd(), start=-1), "start has to be at least 0, got -1"),
    "alpha=1.5": (lambda: Lookahead(sgd(), alpha=1.5), "alpha has to be between 0 and 1, got 1.5"),
    "alpha=-0.1": (lambda: Lookaround(sgd(), alpha=-0.1), "alpha has to be between 0 and 1, got -0.1"),
    "alpha=nan": (lambda: Lookahead(sgd(), alpha=math.nan), "alpha has to be between 0 and 1, got nan"),
    "alpha=best": (lambda: Lookahead(sgd(), alpha="best"), "between 0 and 1 or 'adaptive', got 'best'"),
    "alpha_low=2": (
        lambda: Lookahead(sgd(), alpha="adaptive", alpha_low=2),
        "alpha_low has to be between 0 and 1, got 2",
    ),
    "inner_state": (
        lambda: Lookahead(sgd(), inner_state="keep"),
        "'keep' is not known.*'maintain', 'interpolate', 'reset'",
    ),
    "rho=-1": (lambda: SAM(sgd(), rho=-1), "rho has to be finite and at least 0, got -1"),
    "rho=inf": (lambda: SAM(sgd(), rho=math.inf), "rho has to be finite and at least 0, got inf"),
    "lbfgs": (
        lambda: Lookahead(LBFGS([nn.Parameter(torch.zeros(1))]), inner_state="interpolate"),
        "LBFGS has none: use 'maintain' or 'reset'",
    ),
    "lookahead twice": (lambda: Lookahead(Lookahead(sgd())), "Lookahead cannot be wrapped around Lookahead"),
    "lookaround twice": (lambda: Lookaround(SAM(Lookaround(sgd()))), "Lookaround cannot be wrapped around Lookaround"),
    "around branches": (lambda: Lookahead(Lookaround(sgd())), "wrap Lookaround around it instead"),
    "sam without a closure": (lambda: step_with_gradient(SAM), r"SAM evaluates the gradient twice.*step\(closure\)"),
}

TYPES = {
    "no optimizer": (lambda: Lookahead([nn.Parameter(torch.zeros(1))]), "Lookahead wraps a torch.optim.Optimizer, got"),
    "a class": (lambda: Lookaround(SGD), "Lookaround wraps a torch.optim.Optimizer, got"),
    "none": (lambda: SAM(None), "SAM wraps a torch.optim.Optimizer, got None"),
    "k=2.0": (lambda: Lookahead(sgd(), k=2.0), "k has to be an integer, got 2.0"),
    "k=True": (lambda: Lookahead(sgd(), k=True), "k has to be an integer, got True"),
    "branches='3'": (lambda: Lookaround(sgd(), branches="3"), "branches has to be an integer, got '3'"),
    "alpha=None": (lambda: Lookahead(sgd(), alpha=None), "alpha has to be a number between 0 and 1, got None"),
    "rho='1'": (lambda: SAM(sgd(), rho="1"), "rho has to be a number, got '1'"),
    "model": (lambda: Lookaround(sgd(), model="net"), "model has to be the torch.nn.Module that is trained, got 'net'"),
}


def step_with_gradient(wrap):
    param = nn.Parameter(torch.zeros(1))
    param.grad = torch.ones(1)
    wrap(SGD([param], lr=0.1)).step()


@pytest.mark.parametrize("mistake", VALUES)
def test_values_that_are_not_allowed(mistake):
    make, message = VALUES[mistake]
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("mistake", TYPES)
def test_types_that_are_not_allowed(mistake):
    make, message = TYPES[mistake]
    with pytest.raises(TypeError, match=message):
        make()


def test_a_refused_wrapper_leaves_the_inner_optimizer_as_it_was():
    inner = sgd()
    before = [dict(group) for group in inner.param_groups]
    for make in (
        lambda: Lookahead(inner, k=0),
        lambda: Lookahead(inner, inner_state="keep"),
        lambda: Lookaround(inner, model="net"),
        lambda: SAM(inner, rho=-1),
    ):
        with pytest.raises((ValueError, TypeError)):
            make()
        assert inner.param_groups == before


def test_settings_are_checked_when_they_are_set_and_when_they_are_scheduled():
    optimizer = Lookahead(sgd(), k=1)
    with pytest.raises(ValueError, match="k has to be at least 1, got 0"):
        optimizer.k = 0
    with pytest.raises(ValueError, match="alpha has to be between 0 and 1, got 2"):
        optimizer.alpha = 2
    optimizer.param_groups[0]["params"][0].grad = torch.zeros(1)
    optimizer.param_groups[0]["lookahead_k"] = 0
    with pytest.raises(ValueError, match="k has to be at least 1, got 0"):
        optimizer.step()
    optimizer.param_groups[0].update(lookahead_k=1, lookahead_alpha=1.5)
    with pytest.raises(ValueError, match=r"alpha has to be between 0 and 1, got 1\.5"):
        optimizer.step()


def test_a_new_wrapper_around_the_same_optimizer_starts_afresh():
    inner = sgd()
    param = inner.param_groups[0]["params"][0]
    param.grad = -torch.ones(1)
    old = Lookaround(Lookahead(inner, k=2), branches=2, k=3)
    for _ in range(5):
        old.step()
    start = param.item()
    new = Lookaround(old.inner, branches=2, k=1)
    assert not any(key.startswith("lookaround_inner") for key in new.param_groups[0])
    for _ in range(2):
        new.step()
    assert param.item() != start
    assert new.param_groups[0]["lookaround_round"] == 1


def test_a_model_that_is_not_trained_is_refused():
    with pytest.raises(ValueError, match="model=Linear has none of the optimizer's parameters"):
        Lookaround(sgd(), model=torch.nn.Linear(1, 1))
