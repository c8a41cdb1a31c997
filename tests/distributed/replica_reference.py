"""What the replica groups of these tests train, and nested loops written out: who takes part in which round, with which branch's data."""

import threading
from copy import deepcopy

import torch
from torch import nn

from lookaround.distributed import keyed_generator

K, D, LR, MOMENTUM = 3, 3, 0.05, 0.9
SEEDING = threading.Lock()  # threads share torch's generator


def network(seed=0):
    with SEEDING:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2))


def batch(branch, step):
    return torch.randn(6, 4, generator=keyed_generator(0, branch, step))


def turn(model, optimizer, branch, step):
    optimizer.zero_grad()
    (model(batch(branch, step)) - 1).square().mean().backward()
    optimizer.step()


def sgd(params):
    return torch.optim.SGD(params, lr=LR, momentum=MOMENTUM)


def place(optimizer):
    """Rounds ended, and steps made in this one."""
    group = optimizer.state_dict()["param_groups"][0]
    return group["lookaround_round"], group["lookaround_step"]


def same(one, other):
    assert one.keys() == other.keys()
    for key in one:
        assert torch.equal(one[key], other[key]), key


class Alone:
    """One replica group's own loop: its network and its inner optimizer, which averages replace and leave alone."""

    def __init__(self):
        self.model = network()
        self.inner = sgd(self.model.parameters())

    def round(self, branch, number):
        for step in range(number * K, number * K + K):
            turn(self.model, self.inner, branch, step)


def mean_over(members, into=None):
    """m ← m + (θ_j - m) / j, in the order of the members, in all of them and those who take it over; counters are the last one's."""
    states = [member.model.state_dict() for member in members]
    mean = {key: value.clone() for key, value in states[0].items()}
    for key, value in mean.items():
        for j, of in enumerate(states[1:], start=2):
            if value.is_floating_point():
                value.lerp_(of[key], 1 / j)
            else:
                value.copy_(of[key])
    for member in [*members, *(into or [])]:
        member.model.load_state_dict(mean)
    return mean


def by_hand(rounds):
    """``rounds``: for each, {replica group: branch} of those who take part, and {who takes it over: from whom}."""
    groups = {}
    for number, (holders, healed) in enumerate(rounds):
        for name, branch in holders.items():
            groups.setdefault(name, Alone()).round(branch, number)
        for name, source in healed.items():
            groups[name] = Alone()
            groups[name].inner.load_state_dict(deepcopy(groups[source].inner.state_dict()))
        yield mean_over([groups[name] for name in sorted(holders)], [groups[name] for name in healed])
