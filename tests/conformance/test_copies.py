"""Contract 3 and 1: copies of a wrapper and of what holds it, and models that change under it."""

import copy
import io
import pickle
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import Adam

from conformance.table import WRAPPERS, Net, batch, case, closure_for, momentum, same
from lookaround import Lookahead, Lookaround

AROUND = [name for name in WRAPPERS if name not in ("sam", "asam")]


def loss_of(optimizer, model, step, branch):
    optimizer.zero_grad()
    loss = model(batch(step, branch)).square().mean()
    loss.backward()
    return loss


@pytest.mark.parametrize("name", AROUND)
def test_a_shallow_copy_made_inside_averaged_leaves_the_model_alone(name):
    each, twin = case(name).train(4), case(name).train(4)
    with each.optimizer.averaged():
        shown = copy.deepcopy(each.model.state_dict())
        copied = copy.copy(each.optimizer)
        assert same(each.model.state_dict(), shown)
    assert same(list(each.model.parameters()), list(twin.model.parameters()))
    assert copied.param_groups[0]["params"][0] is each.optimizer.param_groups[0]["params"][0]
    each.train(5, 4), twin.train(5, 4)
    assert same(each.model.state_dict(), twin.model.state_dict())
    assert same(each.optimizer.state_dict(), twin.optimizer.state_dict())


class Holder(nn.Module):
    """A module with its own optimizer, as Lightning modules and trainers have it."""

    def __init__(self, branches):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
        self.optimizer = Lookaround(momentum(list(self.parameters())), branches=branches, k=2, model=self)

    def forward(self, inputs):
        return self.body(inputs)

    def fit(self, steps, first=0):
        for step in range(first, first + steps):
            self.optimizer.step(closure_for(self.optimizer, self, step))
        return self


def pickled(value):
    return pickle.loads(pickle.dumps(value))


def saved_whole(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled, saved_whole])
@pytest.mark.parametrize("branches", [1, 2])
@pytest.mark.parametrize("steps", [0, 3])
def test_a_module_that_holds_its_own_lookaround_can_be_copied(duplicate, branches, steps):
    module = Holder(branches).fit(steps)
    twin = duplicate(module)
    assert twin.optimizer.param_groups[0]["params"][0] is next(twin.parameters())
    before = copy.deepcopy(module.state_dict())
    twin.fit(5, steps)
    assert same(module.state_dict(), before)
    module.fit(5, steps)
    assert same(module.state_dict(), twin.state_dict())
    assert same(module.optimizer.state_dict(), twin.optimizer.state_dict())


def adaptive(make, dtype):
    model = Net().to(dtype)
    return model, Lookahead(make(list(model.parameters())), k=3, alpha="adaptive")


def assert_trains(model, optimizer):
    for step in range(4, 10):
        optimizer.zero_grad()
        model(batch(step).double()).square().mean().backward()
        optimizer.step()
    assert 0.2 <= optimizer.alpha <= 1.0
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("make", [momentum, lambda params: Adam(params, lr=0.01)])
def test_an_adaptive_alpha_goes_on_where_it_was_loaded_in_another_dtype(make):
    model, optimizer = adaptive(make, torch.float64)
    optimizer.load_state_dict(copy.deepcopy(case("lookahead, adaptive", make).train(4).optimizer.state_dict()))
    assert_trains(model, optimizer)


def test_an_adaptive_alpha_goes_on_in_a_model_whose_dtype_changes():
    """With SGD, which takes it; Adam does not, alone either."""
    model, optimizer = adaptive(momentum, torch.float32)
    for step in range(4):
        optimizer.step(closure_for(optimizer, model, step))
    model.double()
    assert_trains(model, optimizer)


@pytest.mark.parametrize("branches", [1, 3])
def test_a_buffer_added_or_grown_later_is_taken_along_or_named(branches):
    """Once the round it appeared in is over it belongs to every branch, or the message says which one and what to do."""

    for name, change in {
        "extra": lambda model: model.register_buffer("extra", torch.zeros(2)),
        "running_mean": lambda model: setattr(model.body[1], "running_mean", torch.zeros(6)[:5]),
        "num_batches_tracked": lambda model: setattr(model.body[1], "num_batches_tracked", torch.zeros(2).long()),
    }.items():
        assert _said_of_a_changed_buffer(branches, change) is None or name in _said_of_a_changed_buffer(
            branches, change
        )


def _said_of_a_changed_buffer(branches, change):
    """The message of the ValueError it makes to go on, None where there is none."""
    model = Net()
    optimizer = Lookaround(momentum(list(model.parameters())), branches, k=2, alpha=0.5, model=model)
    for step in range(3 * branches + 1):
        optimizer.step(closure_for(optimizer, model, step))
    change(model)
    try:
        for step in range(20, 20 + 5 * branches):
            optimizer.step(closure_for(optimizer, model, step))
        optimizer.average()
    except ValueError as error:
        return str(error)
    return None


def test_the_vectors_of_spectral_norm_are_copied_and_not_averaged():
    """They are iterates of a power method: their mean is no unit vector, and none of the branches'."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 6)), nn.BatchNorm1d(6), nn.Linear(6, 2))
    optimizer = Lookaround(momentum(list(model.parameters())), branches=3, k=2, model=model)
    norm = model[0].parametrizations.weight[0]
    for step in range(4):
        own = []
        for branch in optimizer.around():
            optimizer.step(partial(loss_of, optimizer, model, step, branch))
            own.append([norm._u.clone(), norm._v.clone()])
        if step % 2:
            assert any(same([norm._u, norm._v], vectors) for vectors in own)
