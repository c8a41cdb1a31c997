"""Branches on replica groups that come and go, without torchft: threads with a manager of its interface, and nested loops written out."""

import threading
import warnings
from copy import deepcopy
from datetime import timedelta

import pytest
import torch
from replica_groups import Fake, KilledError, Lighthouse, run
from torch import nn

from lookaround import Lookaround
from lookaround.distributed import keyed_generator

K, D, LR, MOMENTUM = 3, 3, 0.05, 0.9
LIMIT = timedelta(seconds=30)


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


SETTINGS = {
    "plain": {},
    "alpha": {"alpha": 0.5},
    "outer": {"outer": lambda p: torch.optim.SGD(p, lr=0.7, momentum=0.9, nesterov=True)},
    "interpolate": {"inner_state": "interpolate", "alpha": 0.8},
    "reset": {"inner_state": "reset"},
}


def build(manager, seed=0, inner=sgd, branches=D, **settings):
    model = network(seed)
    replicas = {} if manager is None else {"replicas": manager, "time_limit": LIMIT}
    return model, Lookaround(inner(model.parameters()), branches, K, model=model, **replicas, **settings)


def state(model, optimizer):
    own = optimizer.state_dict()["state"]
    tensors = {f"{i}.{k}": v.clone() for i, e in own.items() for k, v in e.items() if isinstance(v, torch.Tensor)}
    return {"model": {k: v.clone() for k, v in model.state_dict().items()}, "optimizer": tensors}


def train(manager, rounds, seed=0, seen=None, hook=lambda step, branch: None, **settings):
    """So many averages, with a state after each; a step of the training is a pass over the branches."""
    model, optimizer = build(manager, seed, **settings)
    states = {}
    while place(optimizer)[0] < rounds:
        for branch in optimizer.around():
            number, within = place(optimizer)
            step = number * K + within
            hook(step, branch)
            if seen is not None:
                seen.append((step, branch))
            turn(model, optimizer, branch, step)
        number, within = place(optimizer)
        if not within:
            states[number] = state(model, optimizer)
    return states


def place(optimizer):
    """Rounds ended, and steps made in this one."""
    group = optimizer.state_dict()["param_groups"][0]
    return group["lookaround_round"], group["lookaround_step"]


def same(one, other):
    assert one.keys() == other.keys()
    for key in one:
        assert torch.equal(one[key], other[key]), key


def together(lighthouse, trainings):
    """Run them; the warnings, in any order, and what they return."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ends = run(lighthouse, trainings)
    assert all(issubclass(w.category, RuntimeWarning) for w in caught), [str(w.message) for w in caught]
    for end in ends.values():
        if isinstance(end, BaseException):
            raise end
    return sorted({str(w.message) for w in caught}), ends


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("name", SETTINGS)
def test_without_faults_they_are_one_process_with_all_branches_bit_for_bit(size, name):
    lighthouse = Lighthouse(size)
    said, ends = together(
        lighthouse,
        {
            str(i): lambda own, i=i: train(Fake(lighthouse, own), 4, seed=i, branches=size, **SETTINGS[name])
            for i in range(size)
        },
    )
    assert said == []
    alone = train(None, 4, branches=size, **SETTINGS[name])
    for end in ends.values():
        assert end.keys() == alone.keys() == {1, 2, 3, 4}
        for number in alone:
            same(end[number]["model"], alone[number]["model"])


# -- nested loops written out: who takes part in which round, and with which branch's data -----------------------------------


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


def dies(at_step):
    def hook(step, branch):
        if step == at_step:
            raise KilledError

    return hook


def lives(lighthouse, name, *lives):
    """One life after the other; each but the last is ended by `KilledError`, and the next one waits for its event."""
    for hook, event, seed, seen in lives:
        if event is not None:
            lighthouse.leave(name)
            assert event.wait(20)
        try:
            return train(Fake(lighthouse, name), ROUNDS, seed=seed, seen=seen, hook=hook)
        except KilledError:
            pass
    return None


ROUNDS = 6


def test_the_mean_goes_over_those_who_are_left_and_they_take_the_lost_branch_in_turn():
    lighthouse, seen = Lighthouse(3), {name: [] for name in "abc"}
    said, ends = together(
        lighthouse,
        {
            "a": lambda own: lives(lighthouse, own, (lambda s, b: None, None, 0, seen["a"])),
            "b": lambda own: lives(lighthouse, own, (dies(4), None, 0, seen["b"])),
            "c": lambda own: lives(lighthouse, own, (lambda s, b: None, None, 0, seen["c"])),
        },
    )
    assert said == [
        "branch 1 did not come to the average of round 1: the mean is over 0, 2, divided by 2; the 2 who are there take its augmentation "
        "in turn from the next round on"
    ]
    turns = {"a": [0, 0, 1, 0, 2, 1], "c": [2, 2, 2, 1, 0, 2]}
    for name, branches in turns.items():
        assert seen[name] == [(step, branch) for i, branch in enumerate(branches) for step in range(i * K, i * K + K)]
    rounds = [({"a": 0, "b": 1, "c": 2}, {}), ({"a": 0, "c": 2}, {})]
    rounds += [({"a": a, "c": c}, {}) for a, c in zip(turns["a"][2:], turns["c"][2:], strict=True)]
    for number, mean in enumerate(by_hand(rounds), start=1):
        same(ends["a"][number]["model"], mean)
        same(ends["c"][number]["model"], mean)


def test_one_that_returns_takes_a_peers_state_and_has_its_weights_bit_for_bit_from_the_next_average_on():
    lighthouse, seen = Lighthouse(3), {name: [] for name in "abc"}
    back = threading.Event()

    def waits_for_b(step, branch):
        if step == 3 * K:
            back.set()
            with lighthouse.changed:
                assert lighthouse.changed.wait_for(lambda: "b" in lighthouse.alive, 20)

    said, ends = together(
        lighthouse,
        {
            "a": lambda own: lives(lighthouse, own, (waits_for_b, None, 0, seen["a"])),
            "b": lambda own: lives(lighthouse, own, (dies(4), None, 0, []), (lambda s, b: None, back, 7, seen["b"])),
            "c": lambda own: lives(lighthouse, own, (lambda s, b: None, None, 0, seen["c"])),
        },
    )
    assert len(said) == 1
    assert "branch 1 did not come to the average of round 1" in said[0]
    assert sorted(ends["b"]) == [5, 6]  # it has seen the end of round 4, and has no state of its own from before
    assert seen["b"] == [(step, 1) for step in range(4 * K, 6 * K)]
    three = {"a": 0, "b": 1, "c": 2}
    rounds = [(three, {}), ({"a": 0, "c": 2}, {}), ({"a": 1, "c": 2}, {}), ({"a": 0, "c": 1}, {"b": "a"})]
    rounds += [(three, {}), (three, {})]
    for number, mean in enumerate(by_hand(rounds), start=1):
        for name in "abc":
            if number in ends[name]:
                same(ends[name][number]["model"], mean)
