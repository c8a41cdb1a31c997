"""A small network moved at random, the points it visits, and their plain weighted mean."""

import math

import torch
from torch import nn

from lookaround.averaging import RunningAverage


def net(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2)).to(dtype)


def walk(model, steps, seed=1):
    """Move the model at random and yield after every step; the trajectory depends on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        with torch.no_grad():
            for tensor in [*model.parameters(), *model.buffers()]:
                if tensor.is_floating_point():
                    tensor += torch.randn(tensor.shape, generator=generator).to(tensor.dtype) / 4
                else:
                    tensor += 1
        yield


def points(steps, dtype=torch.float32):
    """The state after each step in float64, and the model at the end."""
    model = net(dtype=dtype)
    return [{k: v.double().clone() for k, v in model.state_dict().items()} for _ in walk(model, steps)], model


def weighted(history, weights):
    total = math.fsum(weights)
    return {k: sum(w * h[k] for w, h in zip(weights, history, strict=True)) / total for k in history[0]}


def run(rule, steps, dtype=torch.float32, **options):
    model = net(dtype=dtype)
    average = RunningAverage(model, rule, **options)
    for _ in walk(model, steps):
        average.update()
    return model, average


def shown(average, which=0):
    with average.averaged(which) as model:
        return {k: v.clone() for k, v in model.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
