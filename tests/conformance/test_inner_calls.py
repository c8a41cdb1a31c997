"""Contract 3: what is called on a wrapper reaches the inner optimizer, and settings may be numpy's numbers."""

import copy
from functools import partial
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch.optim import SGD

from conformance.table import WRAPPERS, Net, batch, case, closure_for, momentum, same
from conformance.test_checkpoints import through_file
from lookaround import SAM, Lookahead, Lookaround

AROUND = [name for name in WRAPPERS if name not in ("sam", "asam")]


class Speaking(SGD):
    """Takes more than a closure, and has modes, as schedule-free optimizers have. All of them say into one list what they hear."""

    heard: ClassVar[list[object]] = []

    def step(self, closure=None, *, scale=1.0):
        self.heard.append(scale)
        return super().step(closure)

    def train(self):
        self.heard.append("train")

    def eval(self):
        self.heard.append("eval")


def speaking(name):
    model = Net()
    Speaking.heard.clear()
    return model, WRAPPERS[name](Speaking(model.parameters(), lr=0.1, momentum=0.9), model)


@pytest.mark.parametrize("name", WRAPPERS)
def test_further_arguments_of_a_step_reach_the_inner_optimizer(name):
    model, optimizer = speaking(name)
    for step in range(4):
        optimizer.step(closure_for(optimizer, model, step), scale=float(step))
    assert Speaking.heard == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize("name", AROUND)
def test_train_and_eval_reach_an_inner_optimizer_that_has_them(name):
    model, optimizer = speaking(name)
    optimizer.train()
    for step in range(4):
        optimizer.step(closure_for(optimizer, model, step))
    Speaking.heard.clear()
    optimizer.eval()
    assert set(Speaking.heard) == {"eval"}
    optimizer.train()
    assert Speaking.heard[-1] == "train"


@pytest.mark.parametrize("name", AROUND)
def test_train_and_eval_show_the_average_and_give_the_training_weights_back(name):
    twin, each = case(name).train(4), case(name).train(4)
    before = copy.deepcopy([each.model.state_dict(), each.optimizer.state_dict()])
    for _ in range(2):
        each.optimizer.eval()
        each.optimizer.eval()
        with twin.optimizer.averaged():
            assert same(each.model.state_dict(), twin.model.state_dict())
        each.optimizer.train()
        each.optimizer.train()
        assert same([each.model.state_dict(), each.optimizer.state_dict()], before)
    twin.train(5, 4), each.train(5, 4)
    assert same(each.optimizer.state_dict(), twin.optimizer.state_dict())


@pytest.mark.parametrize("name", AROUND)
def test_a_step_in_evaluation_mode_is_refused(name):
    each = case(name).train(4)
    each.optimizer.eval()
    with pytest.raises(ValueError, match="train"):
        each.train(1, 4)


@pytest.mark.parametrize("name", AROUND)
@pytest.mark.parametrize("steps", [0, 1, 4, 6])
def test_a_state_saved_in_evaluation_mode_resumes_bit_for_bit(name, steps):
    """As Transformers' Trainer saves it: the model has the average, the optimizer's state the training weights."""
    whole = case(name).train(steps)
    whole.optimizer.eval()
    saved = through_file([whole.model.state_dict(), whole.optimizer.state_dict()])
    whole.optimizer.train()
    resumed = case(name, seed=3)
    resumed.model.load_state_dict(saved[0])
    resumed.optimizer.load_state_dict(saved[1])
    resumed.optimizer.train()
    resumed.train(7, steps), whole.train(7, steps)
    assert same(list(resumed.model.parameters()), list(whole.model.parameters()))


@pytest.mark.parametrize("wrap", [lambda o: Lookahead(o, k=3, alpha=1.0), lambda o: Lookaround(o, 1, k=3)])
@pytest.mark.parametrize("kind", ["ScheduleFreeSGD", "ScheduleFreeAdamW", "ScheduleFreeRAdam"])
@pytest.mark.filterwarnings("ignore")
def test_a_schedule_free_optimizer_evaluates_where_it_does_alone(kind, wrap):
    peers = pytest.importorskip("pytorch_optimizer")
    models = [Net().eval() for _ in range(2)]
    plain, inner = (getattr(peers, kind)(m.parameters(), lr=0.05) for m in models)
    optimizer = wrap(inner)
    plain.train(), optimizer.train()
    for step in range(8):
        for each, model in ((plain, models[0]), (optimizer, models[1])):
            closure_for(each, model, step)()
            each.step()
        if step in (1, 2, 6):
            plain.eval(), optimizer.eval()
            assert same(models[0].state_dict(), models[1].state_dict())
            plain.train(), optimizer.train()
        assert same(models[0].state_dict(), models[1].state_dict())


def test_numbers_of_numpy_are_numbers():
    def build(integer, real):
        model = Net()
        return model, [
            Lookahead(momentum(list(model.parameters())), k=integer(2), alpha=real(0.5)),
            Lookaround(momentum(list(Net().parameters())), branches=integer(2), k=integer(2), alpha=real(0.5)),
        ]

    (model, ours), (plain_model, theirs) = build(np.int64, np.float64), build(int, float)
    for optimizer, plain in zip(ours, theirs, strict=True):
        assert same(optimizer.state_dict(), plain.state_dict())
        through_file(optimizer.state_dict())
    ours[0].k, ours[0].alpha = np.int32(3), np.float64(0.25)
    theirs[0].k, theirs[0].alpha = 3, 0.25
    for step in range(6):
        ours[0].step(closure_for(ours[0], model, step))
        theirs[0].step(closure_for(theirs[0], plain_model, step))
    assert same(model.state_dict(), plain_model.state_dict())
    through_file(ours[0].state_dict())


def test_a_period_may_be_a_function_that_returns_numpys_integers():
    model, plain_model = Net(), Net()
    optimizer = Lookaround(momentum(list(model.parameters())), 2, k=lambda t: np.int64(1 + t % 2))
    plain = Lookaround(momentum(list(plain_model.parameters())), 2, k=lambda t: 1 + t % 2)
    for step in range(9):
        optimizer.step(closure_for(optimizer, model, step))
        plain.step(closure_for(plain, plain_model, step))
    assert same(model.state_dict(), plain_model.state_dict())
    through_file(optimizer.state_dict())


def test_sam_around_lookaround_goes_around():
    """In this order SAM hands each step to the branch that is in the model: the same as a Lookaround of SAM's steps."""
    models = [Net().eval() for _ in range(2)]
    outside = SAM(Lookaround(momentum(list(models[0].parameters())), branches=3, k=2))
    inside = Lookaround(SAM(momentum(list(models[1].parameters()))), branches=3, k=2)
    for step in range(5):
        for ours, theirs in zip(outside.around(), inside.around(), strict=True):
            assert ours == theirs == inside.branch
            for optimizer, model in ((outside, models[0]), (inside, models[1])):
                optimizer.step(partial(loss_of, optimizer, model, step, ours))
    with outside.averaged(), inside.averaged():
        assert same(models[0].state_dict(), models[1].state_dict())
    assert same(models[0].state_dict(), models[1].state_dict())


def loss_of(optimizer, model, step, branch):
    optimizer.zero_grad()
    loss = model(batch(step, branch)).square().mean()
    loss.backward()
    return loss


class Foreign(torch.optim.SGD):
    """Keeps settings in its groups as timm's Lookahead does."""

    def __init__(self, params):
        super().__init__(params, lr=0.1)
        for group in self.param_groups:
            group.update(lookahead_alpha=0.5, lookahead_k=6, lookahead_step=0)


def test_a_wrapper_of_another_library_that_has_the_same_settings_is_refused():
    """Ours would overwrite them, and theirs would run with our k and alpha in silence."""
    inner = Foreign([torch.nn.Parameter(torch.ones(1))])
    with pytest.raises(
        ValueError, match=r"Foreign keeps lookahead_alpha, lookahead_k, lookahead_step.*wrap the optimizer inside"
    ):
        Lookahead(inner)
    assert inner.param_groups[0]["lookahead_k"] == 6
    Lookaround(inner, branches=2)
    plain = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    Lookahead(plain, k=3)
    assert Lookahead(plain, k=7).k == 7
