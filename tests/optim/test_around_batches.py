"""`around(batches)` gives the minibatches of a round to one branch after the other: the same weights, bit for bit, as one by one."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, lr_scheduler

from conformance.table import Net, batch, same
from lookaround import Lookahead, Lookaround

WRAPS = {
    "lookahead": lambda o, m: Lookahead(o, k=3),
    "lookaround": lambda o, m: Lookaround(o, 3, k=4),
    "model": lambda o, m: Lookaround(o, 3, k=4, model=m),
    "alpha": lambda o, m: Lookaround(o, 2, k=3, alpha=0.5, model=m),
    "period": lambda o, m: Lookaround(o, 2, k=lambda t: max(1, 4 - t)),
    "start": lambda o, m: Lookaround(o, 2, k=3, start=5),
    "nested": lambda o, m: Lookaround(Lookahead(o, k=2), 2, k=3),
}
INNERS = {"momentum": lambda p: SGD(p, lr=0.05, momentum=0.9), "adam": lambda p: Adam(p, lr=0.01)}
COUNT = 23


class Case:
    def __init__(self, wrap, inner, scheduled, seed=0):
        self.model = Net(seed).eval() if wrap != "model" and wrap != "alpha" else Net(seed)
        self.optimizer = WRAPS[wrap](INNERS[inner](list(self.model.parameters())), self.model)
        self.scheduler = lr_scheduler.ExponentialLR(self.optimizer, 0.9) if scheduled else None

    def body(self, step, branch):
        self.optimizer.zero_grad()
        self.model(batch(step, branch)).square().mean().backward()
        self.optimizer.step()

    def one_by_one(self, steps):
        for step in steps:
            for branch in self.optimizer.around():
                self.body(step, branch)
            if self.scheduler:
                self.scheduler.step()
        return self

    def together(self, steps, stop=None):
        """Up to a turn, before or after its step, if one is given; what has been saved there."""
        turns = itertools.count()
        for step, branch in self.optimizer.around(steps):
            turn = next(turns)
            if stop == (turn, "before"):
                return self.saved()
            self.body(step, branch)
            if self.scheduler and branch == 0:
                self.scheduler.step()
            if stop == (turn, "after"):
                return self.saved()
        return None

    def saved(self):
        parts = [self.model.state_dict(), self.optimizer.state_dict()]
        return copy.deepcopy([*parts, self.scheduler.state_dict() if self.scheduler else {}])


def assert_same(first, second):
    first.optimizer.average(), second.optimizer.average()
    assert same(first.model.state_dict(), second.model.state_dict())
    rates = [[group["lr"] for group in each.optimizer.param_groups] for each in (first, second)]
    assert rates[0] == rates[1]


@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize("inner", INNERS)
@pytest.mark.parametrize("wrap", WRAPS)
def test_the_weights_are_those_of_one_minibatch_after_the_other(wrap, inner, scheduled):
    together = Case(wrap, inner, scheduled)
    together.together(range(10)), together.together(range(10, COUNT))  # two epochs: rounds go on over the seam
    assert_same(Case(wrap, inner, scheduled).one_by_one(range(COUNT)), together)


@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize("wrap", ["lookaround", "alpha", "nested"])
@pytest.mark.parametrize("where", ["before", "after"])
def test_it_resumes_in_the_middle_bit_for_bit(wrap, where, scheduled):
    whole = Case(wrap, "adam", scheduled)
    whole.together(range(14))
    whole.optimizer.average()
    for turn in range(14):
        model, optimizer, scheduler = Case(wrap, "adam", scheduled).together(range(14), (turn, where))
        resumed = Case(wrap, "adam", scheduled, seed=5)
        resumed.model.load_state_dict(model)
        resumed.optimizer.load_state_dict(optimizer)
        if scheduled:
            resumed.scheduler.load_state_dict(scheduler)
        resumed.together(range(resumed.optimizer.batches_done, 14))
        resumed.optimizer.average()
        assert same(resumed.model.state_dict(), whole.model.state_dict()), turn


def test_branches_take_their_turns_over_the_minibatches_of_a_round():
    weight = nn.Parameter(torch.zeros(1))
    optimizer = Lookaround(SGD([weight], lr=1.0), 2, k=2)
    seen = []
    for letter, branch in optimizer.around("abcde"):
        seen.append(f"{letter}{branch}")
        weight.grad = torch.ones(1)
        optimizer.step()
    assert " ".join(seen) == "a0 b0 a1 b1 c0 d0 c1 d1 e0 e1"
    assert optimizer.batches_done == 5


def test_branches_change_places_d_times_a_round(monkeypatch):
    weight = nn.Parameter(torch.zeros(1))
    optimizer = Lookaround(SGD([weight], lr=1.0), 3, k=4)
    exchanges = []
    branches = optimizer._run.branches
    load = branches.load
    monkeypatch.setattr(branches, "load", lambda *a, **o: exchanges.append(a) or load(*a, **o))
    for _ in optimizer.around(range(4)):
        weight.grad = torch.ones(1)
        optimizer.step()
    assert len(exchanges) == 3


def test_a_scheduler_stepped_in_another_branchs_turn_is_refused():
    weight = nn.Parameter(torch.zeros(1))
    optimizer = Lookaround(SGD([weight], lr=1.0), 2, k=2)
    scheduler = lr_scheduler.ExponentialLR(optimizer, 0.5)

    def train():
        for _, branch in optimizer.around(range(4)):
            weight.grad = torch.ones(1)
            optimizer.step()
            if branch == 1:
                scheduler.step()

    with pytest.raises(ValueError, match="'lr' was changed in the turn of branch 1"):
        train()
