"""Contract 5 and 6 on a CUDA device: no synchronisation in a step, captured graphs that live on, and offload that does not wait."""

import copy
import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW

from conformance.table import same
from lookaround import Lookahead, Lookaround

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
INNERS = {
    "sgd": partial(SGD, lr=0.05, momentum=0.9, foreach=True),
    "adam": partial(Adam, lr=0.01, foreach=True),
    "adamw, fused": partial(AdamW, lr=0.01, fused=True),
}
WRAPS = {
    "lookahead": lambda inner, model: Lookahead(inner, k=5, alpha=0.5),
    "lookaround": lambda inner, model: Lookaround(inner, branches=3, k=1000),
    "lookaround, model": lambda inner, model: Lookaround(inner, branches=3, k=1000, alpha=0.5, model=model),
    "lookaround, offload": lambda inner, model: Lookaround(inner, branches=3, k=1000, offload=True),
}
every_inner = pytest.mark.parametrize("inner", INNERS)


def start(wrap, inner):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 64)).cuda()
    return model, WRAPS[wrap](INNERS[inner](model.parameters()), model)


def batches(count):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(32, 64, generator=generator).cuda() for _ in range(count)]


def train(model, optimizer, inputs):
    for each in inputs:
        optimizer.zero_grad()
        model(each).square().mean().backward()
        optimizer.step()


def synchronisations(run):
    """How often the host waited for the device in ``run()``."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return [str(each.message) for each in said if "synchroniz" in str(each.message)]


@every_inner
@pytest.mark.parametrize("wrap", WRAPS)
def test_twenty_steps_do_not_wait_for_the_device(wrap, inner):
    model, optimizer = start(wrap, inner)
    inputs = batches(26)
    train(model, optimizer, inputs[:6])  # state is made, memory is pinned
    assert synchronisations(lambda: train(model, optimizer, inputs[6:])) == []


def test_the_waiting_would_be_seen():
    value = torch.ones(1, device="cuda")
    assert len(synchronisations(lambda: value.item())) == 1


@every_inner
def test_an_average_of_branches_waits_at_most_once(inner):
    """Whether a branch is finite decides who takes part, and the host has to know."""
    torch.manual_seed(0)
    model = nn.Linear(64, 64).cuda()
    optimizer = Lookaround(INNERS[inner](model.parameters()), branches=3, k=2)
    inputs = batches(24)
    train(model, optimizer, inputs[:6])
    assert len(synchronisations(lambda: train(model, optimizer, inputs[6:]))) <= 3


@every_inner
@pytest.mark.parametrize("wrap", WRAPS)
def test_a_captured_forward_and_backward_serves_every_branch(wrap, inner):
    """The graph holds the addresses of weights and gradients; the branches come into them in turn."""
    (model, optimizer), (plain_model, plain) = start(wrap, inner), start(wrap, inner)
    inputs = batches(20)
    static, graph = inputs[0].clone(), captured(model, inputs[0])
    model.load_state_dict(plain_model.state_dict())
    for each in inputs:
        static.copy_(each)
        graph["input"].copy_(static)
        graph["graph"].replay()
        optimizer.step()
        for param in plain_model.parameters():
            param.grad = torch.zeros_like(param)
        plain_model(each).square().mean().backward()
        plain.step()
    torch.testing.assert_close(list(model.parameters()), list(plain_model.parameters()))


def captured(model, example):
    """Zeroed gradients, forward and backward of the model in one CUDA graph, as torch's notes describe it."""
    static = example.clone()

    def pass_once():
        for param in model.parameters():
            if param.grad is not None:
                param.grad.zero_()
        model(static).square().mean().backward()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            pass_once()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        pass_once()
    return {"graph": graph, "input": static}


def idle(optimizer):
    """What waits for its turn, of each parameter."""
    return [
        value
        for param in (p for group in optimizer.param_groups for p in group["params"])
        for key, value in optimizer.state[param].items()
        if str(key).startswith("lookaround.branch") and isinstance(value, torch.Tensor) and value.dim()
    ]


@every_inner
def test_what_is_offloaded_waits_in_pinned_memory_and_comes_back_as_it_was(inner):
    (model, offloaded), (plain_model, plain) = start("lookaround, offload", inner), start("lookaround", inner)
    inputs = batches(20)
    train(model, offloaded, inputs), train(plain_model, plain, inputs)
    waiting = idle(offloaded)
    assert len(waiting) >= 2 * len(list(model.parameters()))
    assert all(tensor.device.type == "cpu" and tensor.is_pinned() for tensor in waiting)
    assert same(model.state_dict(), plain_model.state_dict())
    offloaded.average(), plain.average()
    assert same(model.state_dict(), plain_model.state_dict())


def test_offloaded_copies_run_beside_the_steps():
    """The host issues a pass over all branches before the device has copied it: it never waits for a copy."""
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(2048, 2048) for _ in range(4)]).cuda()
    optimizer = Lookaround(SGD(model.parameters(), lr=0.01, momentum=0.9), branches=3, k=1000, offload=True)
    inputs = torch.randn(4096, 2048, device="cuda")
    train(model, optimizer, [inputs] * 6)
    torch.cuda.synchronize()
    done = torch.cuda.Event()
    train(model, optimizer, [inputs] * 6)
    done.record()
    assert not done.query()
    torch.cuda.synchronize()
    assert done.query()
    state = copy.deepcopy(optimizer.state_dict())
    assert all(v.is_pinned() for v in idle(optimizer))
    optimizer.load_state_dict(state)
