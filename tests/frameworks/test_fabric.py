"""Fabric: its optimizer has the wrapper's class and a `__dict__` of its own, and goes around as the wrapper does."""

import lightning
import pytest

from conformance.table import same
from frameworks.loops import WRAPS, around, by_hand, flat, loss_of, shown, start

pytestmark = pytest.mark.filterwarnings("ignore")
every_wrap = pytest.mark.parametrize("name", WRAPS)


def set_up(name, seed=0):
    fabric = lightning.Fabric(accelerator="cpu", devices=1)
    model, optimizer = start(name, seed)
    return fabric, *fabric.setup(model, optimizer), optimizer


def go_around(fabric, model, optimizer, passes, first=0):
    for step in range(first, first + passes):
        for branch in optimizer.around():
            optimizer.zero_grad()
            fabric.backward(loss_of(model, step, branch))
            optimizer.step()


@every_wrap
def test_a_loop_without_branches(name):
    fabric, model, proxy, optimizer = set_up(name)
    for step in range(11):
        proxy.zero_grad()
        fabric.backward(loss_of(model, step))
        proxy.step()
    plain_model, plain = by_hand(name, flat, 11)
    assert same(model.module.state_dict(), plain_model.state_dict())
    assert same(optimizer.state_dict(), plain.state_dict())


@every_wrap
def test_a_loop_around_the_proxy(name):
    fabric, model, proxy, optimizer = set_up(name)
    assert proxy is not optimizer
    assert isinstance(proxy, type(optimizer))
    go_around(fabric, model, proxy, 7)
    plain_model, plain = by_hand(name, around, 7)
    assert same(model.module.state_dict(), plain_model.state_dict())
    assert same(optimizer.state_dict(), plain.state_dict())
    assert same(shown(model.module, proxy), shown(plain_model, plain))
    proxy.average(), plain.average()
    assert same(model.module.state_dict(), plain_model.state_dict())


@every_wrap
def test_its_checkpoint_of_the_middle_of_a_round_goes_on(name, tmp_path):
    fabric, model, proxy, _ = set_up(name)
    go_around(fabric, model, proxy, 3)
    fabric.save(tmp_path / "middle.ckpt", {"model": model, "optimizer": proxy})
    fabric, model, proxy, optimizer = set_up(name, seed=5)
    fabric.load(tmp_path / "middle.ckpt", {"model": model, "optimizer": proxy})
    go_around(fabric, model, proxy, 4, first=3)
    plain_model, plain = by_hand(name, around, 7)
    assert same(model.module.state_dict(), plain_model.state_dict())
    assert same(optimizer.state_dict(), plain.state_dict())
