"""Memory that is replaced under an average: a model turned to another dtype while it is shown, or while one is under way."""

import pytest
import torch
from torch import nn
from torch.optim import SGD

from lookaround import Lookahead, Lookaround

WRAPPERS = {
    "lookahead": lambda o, m: Lookahead(o, k=3, alpha=0.5),
    "lookahead with its model": lambda o, m: Lookahead(o, k=3, model=m),
    "lookaround": lambda o, m: Lookaround(o, 2, k=3),
    "lookaround with its model, alpha": lambda o, m: Lookaround(o, 2, k=3, alpha=0.5, model=m),
    "lookaround, overlap": lambda o, m: Lookaround(o, 2, k=3, overlap=2),
}


def new_memory(model):
    for param in model.parameters():
        param.data = param.data.clone()


def trained(wrap, passes):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    optimizer = WRAPPERS[wrap](SGD(model.parameters(), lr=0.1, momentum=0.9), model)
    go_on(model, optimizer, passes)
    return model, optimizer


def go_on(model, optimizer, passes):
    dtype = next(model.parameters()).dtype
    for _ in range(passes):
        for _ in optimizer.around():
            optimizer.zero_grad()
            model(torch.randn(5, 3, dtype=dtype)).square().sum().backward()
            optimizer.step()


def looks(optimizer, how, change, model):
    if how == "averaged":
        with optimizer.averaged():
            change(model)
    else:
        optimizer.eval()
        change(model)
        optimizer.train()


@pytest.mark.parametrize("how", ["averaged", "eval"])
@pytest.mark.parametrize("change", [nn.Module.double, nn.Module.half, new_memory])
@pytest.mark.parametrize("wrap", WRAPPERS)
def test_training_weights_come_back_into_the_memory_there_is(wrap, change, how):
    model, optimizer = trained(wrap, 4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    looks(optimizer, how, change, model)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name].to(value.dtype)), name


def passes(optimizer, weight, count):
    for _ in range(count):
        for _ in optimizer.around():
            weight.grad = torch.randn_like(weight)
            optimizer.step()


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_an_average_under_way_rounds_nothing_to_the_dtype_before(alpha):
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(50))
    optimizer = Lookaround(SGD([weight], lr=0.1), 2, k=3, alpha=alpha, overlap=2)

    passes(optimizer, weight, 3)
    weight.data = weight.data.double()
    weight.grad = None
    passes(optimizer, weight, 2)
    assert not torch.equal(weight.data.float().double(), weight.data)


def test_alpha_set_while_an_average_is_under_way_is_in_what_is_shown():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(5, dtype=torch.float64))
    optimizer = Lookaround(SGD([weight], lr=0.1), 2, k=3, overlap=2)

    passes(optimizer, weight, 3)
    optimizer.alpha = 0.5
    passes(optimizer, weight, 1)
    with optimizer.averaged():
        shown = weight.detach().clone()
    optimizer.average()
    torch.testing.assert_close(weight.data, shown, rtol=1e-12, atol=1e-12)
