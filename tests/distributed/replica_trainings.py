"""Trainings of the replica groups that are threads, and what they say."""

import warnings
from datetime import timedelta

import torch
from replica_groups import run
from replica_reference import D, K, network, place, sgd, turn

from lookaround import Lookaround

LIMIT = timedelta(seconds=30)


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
