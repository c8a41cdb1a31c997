"""Contract 7: `averaged()` shows what `average()` would give, bit for bit, and gives everything back."""

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from conformance.table import WRAPPERS, Net, batch, case, same
from lookaround import Lookahead, Lookaround

AVERAGING = [name for name in WRAPPERS if name not in ("sam", "asam")]
averaging = pytest.mark.parametrize("name", AVERAGING)


def shown(each):
    """Weights, and buffers where the wrapper has the model; counters are of the branch that is there."""
    return [p.detach().clone() for p in each.model.parameters()]


@averaging
@pytest.mark.parametrize("steps", range(9))
def test_it_shows_what_average_would_give(name, steps):
    viewed, ended = (
        case(name, lambda p: Adam(p, lr=0.01)).train(steps),
        case(name, lambda p: Adam(p, lr=0.01)).train(steps),
    )
    before = [t.detach().clone() for t in viewed.model.state_dict().values()]
    with viewed.optimizer.averaged():
        view = shown(viewed)
        buffers = viewed.model.body[1].running_var.clone()
    assert same(before, [t.detach().clone() for t in viewed.model.state_dict().values()])
    ended.optimizer.average()
    assert same(view, shown(ended))
    assert torch.equal(buffers, ended.model.body[1].running_var)


@averaging
def test_looking_changes_nothing_of_the_training(name):
    looked, plain = case(name), case(name)
    for step in range(11):
        looked.train(1, step)
        with looked.optimizer.averaged(), looked.optimizer.averaged():
            looked.model.eval()(batch(step))
            looked.model.train()
        plain.train(1, step)
    assert same(looked.model.state_dict(), plain.model.state_dict())
    assert same(looked.optimizer.state_dict(), plain.optimizer.state_dict())


@averaging
def test_right_after_an_average_it_shows_the_slow_weights_themselves(name):
    each = case(name).train(4)
    each.optimizer.average()
    common = shown(each)
    with each.optimizer.averaged():
        assert same(common, shown(each))
    state = each.optimizer.state_dict()
    each.optimizer.average()
    assert same(common, shown(each))
    assert same(state, each.optimizer.state_dict())


@averaging
def test_average_before_the_first_step_does_nothing(name):
    each = case(name)
    before = shown(each)
    each.optimizer.average()
    with each.optimizer.averaged():
        assert same(before, shown(each))
    assert same(before, shown(each))


@averaging
def test_exceptions_and_nesting_give_the_training_weights_back(name):
    each = case(name).train(4)
    before = shown(each)
    with pytest.raises(KeyError), each.optimizer.averaged():  # noqa: PT012
        inside = shown(each)
        with each.optimizer.averaged():
            assert same(inside, shown(each))
        assert same(inside, shown(each))
        raise KeyError
    assert same(before, shown(each))
    each.train(3, 4)


@averaging
def test_inside_nothing_may_move(name):
    each = case(name).train(4)
    o, state = each.optimizer, case(name).train(1).optimizer.state_dict()
    with o.averaged():
        with o.averaged():
            pass
        calls = {
            r"step\(\)": lambda: o.step(lambda: 0.0),
            r"around\(\)": o.around,
            r"average\(\)": o.average,
            r"load_state_dict\(\)": lambda: o.load_state_dict(state),
        }
        for match, call in calls.items():
            with pytest.raises(ValueError, match=match + " was called inside averaged"):
                call()
    each.train(2, 4)


def test_it_works_between_the_branches_of_around():
    model = Net()
    optimizer = Lookaround(SGD(model.parameters(), lr=0.1), branches=3, k=2, model=model)
    for step in range(2):
        for j in optimizer.around():
            optimizer.zero_grad()
            model(batch(step, j)).square().mean().backward()
            before = [t.clone() for t in model.state_dict().values()]
            with optimizer.averaged():
                pass
            assert same(before, [t.clone() for t in model.state_dict().values()])
            optimizer.step()
    assert optimizer.param_groups[0]["lookaround_round"] == 1


def test_by_hand():
    """φ = 0, α = 1/2; branch 0 went to 1 + 1, branch 1 to 3: the mean is 2.5, half-way 1.25."""
    param = nn.Parameter(torch.zeros(1))
    optimizer = Lookaround(SGD([param], lr=1.0), branches=2, k=5, alpha=0.5)
    for gradient in (-1.0, -3.0, -1.0):
        param.grad = torch.tensor([gradient])
        optimizer.step()
    with optimizer.averaged():
        assert param.tolist() == [1.25]
    assert param.tolist() == [3.0]
    optimizer.average()
    assert (param.tolist(), optimizer.branch) == ([1.25], 0)


def test_when_nothing_is_finite_the_weights_come_back():
    param = nn.Parameter(torch.zeros(1))
    optimizer = Lookaround(SGD([param], lr=1.0), branches=2, k=5)
    for gradient in (float("nan"), float("inf"), 0.0):
        param.grad = torch.tensor([gradient])
        optimizer.step()
    before = param.detach().clone()
    with pytest.raises(ValueError, match="nothing to average"), optimizer.averaged():
        pass
    assert torch.equal(before, param.detach())
    assert not any("training" in key for key in optimizer.state[param])


def test_a_lookahead_that_did_not_move_shows_itself():
    param = nn.Parameter(torch.rand(100))
    optimizer = Lookahead(SGD([param], lr=1.0), k=9, alpha=0.3)
    before = param.detach().clone()
    param.grad = torch.zeros(100)
    optimizer.step()
    with optimizer.averaged():
        assert torch.equal(param.detach(), before)
