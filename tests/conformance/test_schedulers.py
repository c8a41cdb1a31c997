"""Contract 3: a scheduler around a wrapper sets what it sets around the inner optimizer, for every branch."""

import copy

import pytest
import torch
from torch.optim import SGD

from conformance.table import WRAPPERS, Net, batch, case, closure_for, momentum, same
from conformance.test_frameworks import SCHEDULERS
from lookaround import Lookaround

everything = pytest.mark.parametrize("scheduler", SCHEDULERS)


def advance(scheduler, value=1.0):
    scheduler.step(*([value] if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau) else []))


def settings(optimizer):
    return [{key: group[key] for key in ("lr", "momentum")} for group in optimizer.param_groups]


@everything
@pytest.mark.parametrize("name", WRAPPERS)
def test_it_sets_what_it_sets_around_the_inner_optimizer(name, scheduler):
    wrapped, model = case(name), Net()
    plain = momentum(list(model.parameters()))
    theirs, ours = SCHEDULERS[scheduler](plain), SCHEDULERS[scheduler](wrapped.optimizer)
    for step in range(8):
        wrapped.train(1, step)
        plain.step(closure_for(plain, model, step))
        advance(ours), advance(theirs)
        assert settings(wrapped.optimizer) == settings(plain)


@everything
def test_every_branch_trains_at_the_scheduled_rate(scheduler):
    """Stepped once a pass: each branch follows an optimizer alone with a scheduler of its own."""
    model, apart = Net().eval(), [Net().eval() for _ in range(3)]
    optimizer = Lookaround(momentum(list(model.parameters())), branches=3, k=1000)
    plain = [momentum(list(m.parameters())) for m in apart]
    schedules = [SCHEDULERS[scheduler](o) for o in (optimizer, *plain)]
    for step in range(9):
        for j in optimizer.around():
            for each, its in ((optimizer, model), (plain[j], apart[j])):
                each.zero_grad()
                its(batch(step, j)).square().mean().backward()
                each.step()
            for ours, theirs in zip(model.parameters(), apart[j].parameters(), strict=True):
                assert torch.equal(ours, theirs)
        for schedule in schedules:
            advance(schedule)


@everything
@pytest.mark.parametrize("name", ["lookahead", "lookaround", "lookaround around lookahead"])
def test_it_resumes_with_the_wrapper_in_the_middle_of_a_round(name, scheduler):
    def start(seed):
        each = case(name, lambda params: SGD(params, lr=0.05, momentum=0.9), seed)
        return each, SCHEDULERS[scheduler](each.optimizer)

    def train(each, schedule, first, last):
        for step in range(first, last):
            each.train(1, step)
            advance(schedule, 1.0 / (1 + step))

    (whole, schedule), (resumed, other) = start(0), start(5)
    train(whole, schedule, 0, 5)
    saved = copy.deepcopy([whole.model.state_dict(), whole.optimizer.state_dict(), schedule.state_dict()])
    for target, state in zip((resumed.model, resumed.optimizer, other), saved, strict=True):
        target.load_state_dict(state)
    train(whole, schedule, 5, 11), train(resumed, other, 5, 11)
    assert same(resumed.model.state_dict(), whole.model.state_dict())
    assert same(resumed.optimizer.state_dict(), whole.optimizer.state_dict())
