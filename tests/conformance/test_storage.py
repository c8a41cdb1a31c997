"""Contract 5 and 6: parameters keep their memory, autograd sees every change, and an average needs no memory of the model's size."""

import pytest
import torch
from torch import nn
from torch.optim import SGD

from conformance.table import WRAPPERS, case
from lookaround import SAM, Lookahead, Lookaround, tensors

anything = pytest.mark.parametrize("name", WRAPPERS)


@anything
def test_parameters_keep_their_storage_and_stay_leaves(name):
    each = case(name)
    params = list(each.model.parameters())
    identity = [(id(p), p.data_ptr()) for p in params]
    for step in range(7):
        each.train(1, step)
        if hasattr(each.optimizer, "averaged"):
            with each.optimizer.averaged():
                assert identity == [(id(p), p.data_ptr()) for p in each.model.parameters()]
        assert identity == [(id(p), p.data_ptr()) for p in each.model.parameters()]
        assert all(p.is_leaf and p.requires_grad and p.grad_fn is None for p in params)
    each.optimizer.load_state_dict(case(name).train(3).optimizer.state_dict())
    assert identity == [(id(p), p.data_ptr()) for p in each.model.parameters()]


def test_parameters_that_are_views_of_one_flat_buffer_stay_there():
    flat = torch.zeros(6)
    params = [nn.Parameter(flat[:2]), nn.Parameter(flat[2:])]
    optimizer = Lookaround(SGD(params, lr=1.0), branches=2, k=1)
    for j in optimizer.around():
        for p in params:
            p.grad = torch.full_like(p, -1.0 - j)
        optimizer.step()
    assert flat.tolist() == [1.5] * 6


def graph(weight):
    return (weight * weight).sum()


def loads_another_branch(weight):
    optimizer = Lookaround(SGD([weight], lr=0.0), branches=2)
    weight.grad = torch.ones_like(weight)
    loss = graph(weight)
    walk = optimizer.around()
    next(walk)
    next(walk)
    return loss


def averages(weight):
    optimizer = Lookahead(SGD([weight], lr=0.0), k=3)
    weight.grad = torch.ones_like(weight)
    for _ in range(2):
        optimizer.step()
    loss = graph(weight)
    optimizer.average()
    return loss


def shows_the_average(weight):
    optimizer = Lookahead(SGD([weight], lr=0.0), k=3)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    with optimizer.averaged():
        return graph(weight)


def climbs(weight):
    loss = graph(weight)
    weight.grad = torch.ones_like(weight)
    SAM(SGD([weight], lr=0.0)).step(lambda: 0.0)
    return loss


@pytest.mark.parametrize("change", [loads_another_branch, averages, shows_the_average, climbs])
def test_backward_through_weights_that_have_changed_raises(change):
    weight = nn.Parameter(torch.ones(3))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        change(weight).backward()


SIZE, COUNT = 100_000, 60
BYTES = 4 * SIZE


def settings():
    return {
        "lookahead": lambda o: Lookahead(o, k=2, alpha=0.5),
        "lookaround": lambda o: Lookaround(o, 2, k=2),
        "lookaround, alpha": lambda o: Lookaround(o, 2, k=2, alpha=0.5),
    }


def ready(wrap, dtype):
    """A model of 60 tensors, one step before the average that ends its second round."""
    params = [nn.Parameter(torch.zeros(SIZE, dtype=dtype)) for _ in range(COUNT)]
    optimizer = wrap(SGD(params, lr=0.1, foreach=False))
    for p in params:
        p.grad = torch.ones_like(p)
    for _ in range(4 * optimizer.branches - 1):
        optimizer.step()
    return params, optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", settings())
def test_an_average_makes_no_temporary_of_the_models_size(name, dtype, allocations):
    """Blocks of a few tensors at most, for the average and for the change of branches alike."""
    _, optimizer = ready(settings()[name], dtype)
    with allocations() as made:
        optimizer.step()
    assert optimizer.param_groups[0][f"{optimizer.name}_round"] == 2
    assert made.largest <= 2 * BYTES
    assert made.live_at_most <= 3 * 4 * tensors._CPU_BLOCK  # what a block of three lists in float32 takes
    assert made.live_at_most < COUNT * BYTES / 4


@pytest.mark.parametrize("name", settings())
def test_one_large_tensor_is_averaged_in_blocks(name, allocations):
    param = nn.Parameter(torch.zeros(2_000_000))
    optimizer = settings()[name](SGD([param], lr=0.1, foreach=False))
    param.grad = torch.ones_like(param)
    for _ in range(4 * optimizer.branches - 1):
        optimizer.step()
    with allocations() as made:
        optimizer.step()
    assert made.largest <= 4 * 2**17


@pytest.mark.parametrize("name", settings())
def test_the_memory_it_keeps_is_the_branches_and_the_slow_weights(name):
    _, optimizer = ready(settings()[name], torch.float32)
    optimizer.step()
    tensors = [
        t for entry in optimizer.state.values() for key, t in entry.items() if key.endswith((".slow", ".weights"))
    ]
    kept = {"lookahead": 1, "lookaround": 1, "lookaround, alpha": 2}[name]
    assert sum(t.nbytes for t in tensors) == kept * COUNT * BYTES
