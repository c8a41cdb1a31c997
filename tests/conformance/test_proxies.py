"""Contract 3: objects that have the wrapper's class and a `__dict__` of their own, as Lightning's and Fabric's are, are the wrapper."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import SGD

from conformance.table import WRAPPERS, case, closure_for, same
from lookaround import Lookaround

AROUND = [name for name in WRAPPERS if name not in ("sam", "asam")]


class Forwarding:
    """Takes the class of what it stands for, and asks that for whatever it does not have."""

    def __init__(self, optimizer):
        self._optimizer = optimizer
        self.__class__ = type(type(optimizer).__name__, (Forwarding, type(optimizer)), {})

    def step(self, closure=None):
        return self._optimizer.step(closure)

    def __getattr__(self, name):
        return getattr(self._optimizer, name)


class Copying(Forwarding):
    """Takes a copy of the attributes too, as older versions did: what is set there later reaches one of the two."""

    def __init__(self, optimizer):
        self.__dict__ = {**optimizer.__dict__, "_optimizer": optimizer}
        self.__dict__.pop("step", None)
        self.__class__ = type(type(optimizer).__name__, (Forwarding, type(optimizer)), {})


PROXIES = {"forwarding": Forwarding, "copying": Copying}
every_proxy = pytest.mark.parametrize("proxy", PROXIES)
averaging = pytest.mark.parametrize("name", AROUND)


def go_around(optimizer, stepped, model, passes, first=0):
    """Passes of ``optimizer.around()`` in which ``stepped`` takes the steps; what was visited, and the weights in the model then."""
    seen = []
    for step in range(first, first + passes):
        for branch in optimizer.around():
            seen.append((branch, optimizer.branch, [p.detach().clone() for p in model.parameters()]))
            stepped.step(closure_for(optimizer, model, step))
    return seen


@every_proxy
@averaging
@pytest.mark.parametrize("steps_through_it", [True, False])
def test_going_around_a_proxy_is_going_around(name, proxy, steps_through_it):
    plain, proxied = case(name), case(name)
    stand_in = PROXIES[proxy](proxied.optimizer)
    assert isinstance(stand_in, type(proxied.optimizer))
    seen = go_around(stand_in, stand_in if steps_through_it else proxied.optimizer, proxied.model, 7)
    assert same(seen, go_around(plain.optimizer, plain.optimizer, plain.model, 7))
    assert same(proxied.optimizer.state_dict(), plain.optimizer.state_dict())
    assert same(stand_in.state_dict(), plain.optimizer.state_dict())


@every_proxy
@averaging
def test_a_pass_may_be_begun_by_one_and_gone_on_with_by_the_other(name, proxy):
    plain, proxied = case(name), case(name)
    stand_in = PROXIES[proxy](proxied.optimizer)
    for step in range(6):
        first, second = (stand_in, proxied.optimizer) if step % 2 else (proxied.optimizer, stand_in)
        go_around(first, second, proxied.model, 1, step)
        go_around(plain.optimizer, plain.optimizer, plain.model, 1, step)
    assert same(proxied.model.state_dict(), plain.model.state_dict())
    assert same(proxied.optimizer.state_dict(), plain.optimizer.state_dict())


@every_proxy
@averaging
def test_the_average_shown_through_a_proxy_is_shown_to_both(name, proxy):
    plain, proxied = case(name).train(4), case(name).train(4)
    stand_in = PROXIES[proxy](proxied.optimizer)
    before = [p.detach().clone() for p in proxied.model.parameters()]
    with plain.optimizer.averaged(), stand_in.averaged():
        assert same(proxied.model.state_dict(), plain.model.state_dict())
        for each in (stand_in, proxied.optimizer):
            with pytest.raises(ValueError, match="averaged"):
                each.step(lambda: 0.0)
            with pytest.raises(ValueError, match="averaged"):
                each.average()
        with proxied.optimizer.averaged():
            assert same(proxied.model.state_dict(), plain.model.state_dict())
        assert same(proxied.model.state_dict(), plain.model.state_dict())
    assert same([p.detach() for p in proxied.model.parameters()], before)


@every_proxy
@averaging
def test_a_round_may_be_ended_through_a_proxy(name, proxy):
    plain, proxied = case(name).train(4), case(name).train(4)
    plain.optimizer.average()
    PROXIES[proxy](proxied.optimizer).average()
    plain.train(7, 4), proxied.train(7, 4)
    assert same(proxied.model.state_dict(), plain.model.state_dict())
    assert same(proxied.optimizer.state_dict(), plain.optimizer.state_dict())


@every_proxy
def test_settings_written_to_a_proxy_are_the_optimizers(proxy):
    optimizer = Lookaround(SGD([nn.Parameter(torch.zeros(1))], lr=1.0), branches=2, k=3)
    stand_in = PROXIES[proxy](optimizer)
    stand_in.k, stand_in.alpha = 7, 0.25
    assert (optimizer.k, optimizer.alpha) == (stand_in.k, stand_in.alpha) == (7, 0.25)


@every_proxy
@averaging
def test_a_checkpoint_loaded_through_a_proxy_ends_the_pass_that_was_on(name, proxy):
    saved, proxied = case(name).train(5), case(name, seed=2)
    stand_in = PROXIES[proxy](proxied.optimizer)
    model, state_dict = copy.deepcopy([saved.model.state_dict(), saved.optimizer.state_dict()])
    go_around(stand_in, stand_in, proxied.model, 1)
    for _ in proxied.optimizer.around():
        proxied.model.load_state_dict(model)
        stand_in.load_state_dict(state_dict)
        break
    go_around(stand_in, stand_in, proxied.model, 6, 5)
    go_around(saved.optimizer, saved.optimizer, saved.model, 6, 5)
    assert same(proxied.model.state_dict(), saved.model.state_dict())
    assert same(proxied.optimizer.state_dict(), saved.optimizer.state_dict())


@every_proxy
@averaging
def test_evaluation_mode_through_a_proxy_is_the_optimizers(name, proxy):
    plain, proxied = case(name).train(4), case(name).train(4)
    stand_in = PROXIES[proxy](proxied.optimizer)
    before = [p.detach().clone() for p in proxied.model.parameters()]
    stand_in.eval()
    with plain.optimizer.averaged():
        assert same(proxied.model.state_dict(), plain.model.state_dict())
    proxied.optimizer.train()
    assert same([p.detach() for p in proxied.model.parameters()], before)
