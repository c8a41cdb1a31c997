"""Contract 3: what is called on a wrapper reaches the inner optimizer, and settings may be numpy's numbers."""

import copy
import io
import pickle
from functools import partial
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

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
