"""An outer optimizer: α, SNOO and DiLoCo are three settings of one average step, which follow plain nested loops."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from lookaround import Lookahead, Lookaround
from reference import nested_loops
from reference.problems import INNERS, Noisy, set_gradients, train

OUTERS = {
    "sgd": lambda params: SGD(params, lr=0.7),
    "snoo": lambda params: SGD(params, lr=0.7, momentum=0.9, nesterov=True),
    "adam": lambda params: Adam(params, lr=0.05),
}


@pytest.mark.parametrize("outer", OUTERS)
@pytest.mark.parametrize("inner", ["sgd", "nesterov", "adam"])
@pytest.mark.parametrize("branches", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_it_follows_its_reference(branches, inner, outer, dtype):
    problem = Noisy(21, dtype)
    loops = nested_loops.outer(problem.start, problem.gradient, INNERS[inner], OUTERS[outer], 6, 3, branches)
    params = problem.parameters()
    optimizer = Lookaround(INNERS[inner](params), branches, k=3, outer=OUTERS[outer])
    tolerance = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 0.05, "atol": 0.05}
    for step, expected in enumerate(loops):
        for j in optimizer.around():
            set_gradients(params, problem.gradient(j, step, params))
            optimizer.step()
        torch.testing.assert_close([p.detach() for p in params], expected[0], **tolerance)
    assert step == 17


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("branches", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_alpha_is_plain_descent_of_that_rate_bit_for_bit(alpha, branches, dtype):
    ends = []
    for settings in ({"alpha": alpha}, {"outer": lambda params: SGD(params, lr=alpha)}):
        problem = Noisy(22, dtype)
        params = problem.parameters()
        optimizer = Lookaround(INNERS["nesterov"](params), branches, k=2, **settings)
        ends.append(list(train(optimizer, params, problem, 25)))
    for ours, theirs in zip(*ends, strict=True):
        assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("outer", OUTERS)
def test_averaged_shows_where_the_outer_step_would_go_and_changes_nothing(outer):
    problem = Noisy(23)
    runs = []
    for look in (False, True):
        params = problem.parameters()
        optimizer = Lookaround(INNERS["adam"](params), 2, k=2, outer=OUTERS[outer])
        for _ in train(optimizer, params, problem, 7):
            before = [p.detach().clone() for p in params]
            if look:
                with optimizer.averaged():
                    shown = [p.detach().clone() for p in params]
                assert all(map(torch.equal, before, params))
        optimizer.average()
        runs.append([p.detach().clone() for p in params])
    assert all(map(torch.equal, *runs))
    assert all(map(torch.equal, runs[0], shown))


@pytest.mark.parametrize("outer", OUTERS)
@pytest.mark.parametrize("steps", range(9))
def test_it_resumes_bit_for_bit(outer, steps):
    problem = Noisy(24)
    params, other = problem.parameters(), Noisy(25).parameters()
    whole, resumed = (Lookaround(INNERS["adam"](p), 2, k=2, outer=OUTERS[outer]) for p in (params, other))
    list(train(whole, params, problem, steps))
    with torch.no_grad():
        for to, value in zip(other, params, strict=True):
            to.copy_(value)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    for ours, theirs in zip(
        train(whole, params, problem, 13, steps), train(resumed, other, problem, 13, steps), strict=True
    ):
        assert all(map(torch.equal, ours, theirs))


def test_lookahead_with_nesterov_by_hand():
    """φ = 0; θ goes to 2 in two steps: gradient -2, buffer -2, Nesterov -2 - 0.5 * 2 = -3: φ = 1.5. Again: buffer -3, -3.5: φ = 3.25."""
    weight = nn.Parameter(torch.zeros(1))
    optimizer = Lookahead(SGD([weight], lr=1.0), k=2, outer=lambda p: SGD(p, lr=0.5, momentum=0.5, nesterov=True))
    seen = []
    for _ in range(4):
        weight.grad = torch.tensor([-1.0])
        optimizer.step()
        seen.append(weight.item())
    assert seen == [1.0, 1.5, 2.5, 3.25]
    assert optimizer.outer.param_groups[0]["momentum"] == 0.5


@pytest.mark.parametrize("wrong", [3, "sgd", lambda p: None, SGD([nn.Parameter(torch.zeros(1))], lr=0.1)])
def test_what_is_no_function_to_an_optimizer_is_refused(wrong):
    with pytest.raises(TypeError, match="outer has to be a function from parameters"):
        Lookahead(SGD([nn.Parameter(torch.zeros(1))], lr=0.1), outer=wrong)


def test_either_alpha_or_outer():
    with pytest.raises(ValueError, match="either outer or alpha"):
        Lookahead(SGD([nn.Parameter(torch.zeros(1))], lr=0.1), alpha=0.8, outer=OUTERS["sgd"])


def test_alpha_may_depend_on_the_round():
    weight = nn.Parameter(torch.zeros(1))
    optimizer = Lookahead(SGD([weight], lr=1.0), k=1, alpha=lambda t: [0.5, 0.25, 1.0][t] if t < 3 else 0.0)
    seen = []
    for _ in range(4):
        weight.grad = torch.tensor([-1.0])
        optimizer.step()
        seen.append(weight.item())
    assert seen == [0.5, 0.75, 1.75, 1.75]
    with pytest.raises(ValueError, match=r"alpha\(0\) has to be between 0 and 1, got 2"):
        Lookahead(SGD([weight], lr=1.0), alpha=lambda t: 2)
