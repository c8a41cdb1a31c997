"""Contract 1: any inner optimizer, any groups and any parameters; one cadence for all of them."""

import copy
from functools import partial

import pytest
import torch
from torch import nn, optim

from conformance.table import WRAPPERS, Net, batch, closure_for, same
from lookaround import Lookahead, Lookaround

INNERS = {
    "sgd": lambda p: optim.SGD(p, lr=0.05),
    "momentum": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, foreach=True),
    "sgd, fused": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, fused=True),
    "sgd, maximize": lambda p: optim.SGD(p, lr=1e-3, maximize=True, dampening=0.1, momentum=0.5),
    "adam": lambda p: optim.Adam(p, lr=0.01, amsgrad=True, foreach=False),
    "adam, foreach": lambda p: optim.Adam(p, lr=0.01, foreach=True),
    "adam, fused": lambda p: optim.Adam(p, lr=0.01, fused=True),
    "adam, tensor rate": lambda p: optim.Adam(p, lr=torch.tensor(0.01), foreach=False),
    "adamw, fused": lambda p: optim.AdamW(p, lr=0.01, fused=True),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.05),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "adadelta": lambda p: optim.Adadelta(p, lr=0.5),
    "adamax": lambda p: optim.Adamax(p, lr=0.01),
    "nadam": lambda p: optim.NAdam(p, lr=0.01),
    "radam": lambda p: optim.RAdam(p, lr=0.01),
    "rprop": lambda p: optim.Rprop(p, lr=0.01),
    "asgd": lambda p: optim.ASGD(p, lr=0.05, t0=3),
    "adafactor": lambda p: optim.Adafactor(p, lr=0.05),
    "lbfgs": lambda p: optim.LBFGS(p, lr=0.1, max_iter=3, history_size=3),
}


def end_of(make, model, steps=11):
    optimizer = make(model)
    for step in range(steps):
        closure = closure_for(optimizer, model, step)
        loss = optimizer.step(closure)
        assert torch.isfinite(loss)
    return [p.detach().clone() for p in model.parameters()], optimizer


@pytest.mark.parametrize("inner", INNERS)
@pytest.mark.parametrize(
    "name", ["lookahead", "lookahead, reset", "lookaround, alpha", "sam", "lookaround around lookahead"]
)
@pytest.mark.filterwarnings("ignore:inner_state=.* is ignored:UserWarning")
def test_it_trains_and_resumes_around_every_optimizer_of_torch(name, inner):
    model = Net()
    optimizer = WRAPPERS[name](INNERS[inner](list(model.parameters())), model)
    for step in range(5):
        optimizer.step(closure_for(optimizer, model, step))
    resumed_model = copy.deepcopy(model)
    resumed = WRAPPERS[name](INNERS[inner](list(resumed_model.parameters())), resumed_model)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in range(5, 12):
        optimizer.step(closure_for(optimizer, model, step))
        resumed.step(closure_for(resumed, resumed_model, step))
    assert same(model.state_dict(), resumed_model.state_dict())
    assert same(optimizer.state_dict(), resumed.state_dict())


@pytest.mark.parametrize("inner", INNERS)
def test_alpha_one_is_every_optimizer_of_torch_bit_for_bit(inner):
    plain, _ = end_of(lambda m: INNERS[inner](list(m.parameters())), Net())
    for wrap in (lambda o: Lookahead(o, 2, 1.0), lambda o: Lookaround(o, 1, 2)):
        wrapped, _ = end_of(lambda m, wrap=wrap: wrap(INNERS[inner](list(m.parameters()))), Net())
        assert same(wrapped, plain)


@pytest.mark.parametrize("inner", INNERS)
def test_branches_are_as_good_as_models_apart(inner):
    """d branches of one model against d models, averaged by hand."""
    model, apart = Net().eval(), [Net().eval() for _ in range(3)]
    optimizer = Lookaround(INNERS[inner](list(model.parameters())), branches=3, k=2)
    inners = [INNERS[inner](list(m.parameters())) for m in apart]
    for step in range(8):
        for j in optimizer.around():
            optimizer.step(partial(loss_on, optimizer, model, step, j))
            inners[j].step(partial(loss_on, inners[j], apart[j], step, j))
        if step % 2 == 1:
            with torch.no_grad():
                for params in zip(*(m.parameters() for m in apart), strict=True):
                    mean = sum(params) / 3
                    for p in params:
                        p.copy_(mean)
            torch.testing.assert_close(list(model.parameters()), list(apart[0].parameters()), rtol=1e-3, atol=1e-4)


def loss_on(optimizer, model, step, branch):
    optimizer.zero_grad()
    loss = model(batch(step, branch)).square().mean()
    loss.backward()
    return loss


@pytest.mark.parametrize("wrap", [lambda o: Lookahead(o, k=2), lambda o: Lookaround(o, 2, k=2, alpha=0.5)])
def test_muon_and_sparse_adam(wrap):
    weight = nn.Parameter(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
    muon = wrap(optim.Muon([weight], lr=0.1))
    embedding = nn.Embedding(6, 2, sparse=True)
    sparse = wrap(optim.SparseAdam(embedding.parameters(), lr=0.1))
    untouched = embedding.weight.detach()[5].clone()
    for step in range(9):
        weight.grad = torch.ones_like(weight) * weight.detach()
        muon.step()
        sparse.zero_grad()
        embedding(torch.tensor([step % 5, 0])).square().sum().backward()
        sparse.step()
    assert torch.isfinite(weight).all()
    assert torch.equal(embedding.weight.detach()[5], untouched)


@pytest.mark.parametrize("name", WRAPPERS)
def test_groups_added_in_the_middle_of_a_round_keep_the_cadence(name):
    model = Net()
    late = nn.Linear(2, 2)
    optimizer = WRAPPERS[name](optim.SGD(model.parameters(), lr=0.05, momentum=0.9), model)

    def closure():
        optimizer.zero_grad()
        loss = late(model(torch.ones(3, 4))).square().mean()
        loss.backward()
        return loss

    for step in range(16):
        if step == 4:
            optimizer.add_param_group({"params": late.parameters(), "lr": 0.01})
        optimizer.step(closure)
        own = [{k: v for k, v in g.items() if k.startswith(("look", "sam"))} for g in optimizer.param_groups]
        assert all(settings == own[0] for settings in own)
    state = optimizer.state_dict()
    assert all(torch.isfinite(p).all() for p in [*model.parameters(), *late.parameters()])
    optimizer.load_state_dict(copy.deepcopy(state))
    optimizer.step(closure)


@pytest.mark.parametrize("inner", ["momentum", "adam", "adagrad", "adafactor", "rmsprop", "asgd"])
@pytest.mark.parametrize(
    "name", ["lookahead, interpolate", "lookaround", "lookaround, alpha", "lookaround around lookahead"]
)
@pytest.mark.filterwarnings("ignore:inner_state=.* is ignored:UserWarning")
def test_parameters_frozen_and_unfrozen_in_the_middle_of_a_round(name, inner):
    model = Net()
    frozen = list(model.body[0].parameters())
    for param in frozen:
        param.requires_grad_(False)
    before = [p.clone() for p in frozen]
    optimizer = WRAPPERS[name](INNERS[inner](list(model.parameters())), model)
    for step in range(22):
        if step == 7:
            assert same([p.detach() for p in frozen], before)
            for param in frozen:
                param.requires_grad_(True)
        if step == 15:
            for param in frozen:
                param.requires_grad_(False)
        optimizer.step(closure_for(optimizer, model, step))
    assert not torch.equal(frozen[0].detach(), before[0])
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_the_state_of_a_frozen_parameter_waits_for_every_branch():
    param, other = (nn.Parameter(torch.zeros(1)) for _ in range(2))
    inner = optim.Adam([param, other], lr=0.1)

    def gradients():
        param.grad, other.grad = torch.ones(1) if param.requires_grad else None, torch.ones(1)

    for _ in range(3):
        gradients()
        inner.step()
    param.requires_grad_(False)
    optimizer = Lookaround(inner, branches=2, k=4)
    for step in range(8):
        if step == 3:
            param.requires_grad_(True)
        gradients()
        optimizer.step()
    assert float(optimizer.state[param]["step"]) == 5
    assert float(optimizer.state[param]["lookaround.branch.1.inner.step"]) == 6


def odd_parameters():
    torch.manual_seed(0)
    return {
        "bfloat16": nn.Parameter(torch.randn(3, 4).bfloat16()),
        "float16": nn.Parameter(torch.randn(5).half()),
        "float32": nn.Parameter(torch.randn(2, 3)),
        "float64": nn.Parameter(torch.randn(4).double()),
        "complex": nn.Parameter(torch.randn(3, dtype=torch.complex64)),
        "scalar": nn.Parameter(torch.randn(())),
        "empty": nn.Parameter(torch.empty(0, 3)),
        "transposed": nn.Parameter(torch.randn(4, 5).t()),
        "strided": nn.Parameter(torch.randn(6, 8)[::2, ::3].detach()),
        "channels last": nn.Parameter(torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)),
        "large transposed": nn.Parameter(torch.randn(400, 500).t()),
        "large": nn.Parameter(torch.randn(300_001)),
    }


@pytest.mark.parametrize("wrap", ["lookahead", "lookaround", "lookaround, alpha", "sam", "asam"])
def test_parameters_of_every_kind_together(wrap):
    """The trajectory of each is that of the parameter alone, in the same number of steps: plain float64 loops of constant gradients."""
    params = odd_parameters()
    start = {name: p.detach().clone() for name, p in params.items()}
    layout = {name: (p.data_ptr(), p.stride(), p.dtype) for name, p in params.items()}
    optimizer = WRAPPERS[wrap](optim.SGD(params.values(), lr=0.5), nn.ParameterList(params.values()))

    def closure():
        for p in params.values():
            p.grad = torch.full_like(p, 0.25)
        return torch.zeros(())

    for _ in range(12):
        optimizer.step(closure)
    moved = {"lookahead": 4 * 3 * 0.5, "lookaround": 2 * 2, "lookaround, alpha": 3 * 2 * 0.6, "sam": 12, "asam": 12}[
        wrap
    ]
    for name, p in params.items():
        exact = start[name].to(torch.complex128 if p.is_complex() else torch.float64) - 0.125 * moved
        tolerance = {"bfloat16": 0.05, "float16": 0.006}.get(name, 1e-4)
        torch.testing.assert_close(p.detach().to(exact.dtype), exact, rtol=tolerance, atol=tolerance)
        assert (p.data_ptr(), p.stride(), p.dtype) == layout[name]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("branches", [1, 3])
def test_many_small_moves_of_a_low_precision_weight_are_not_lost(dtype, branches):
    """A tenth of one unit in the last place a round: φ is float32, where they add up."""
    start = 1.0
    ulp = torch.finfo(dtype).eps
    param = nn.Parameter(torch.tensor([start], dtype=dtype))
    optimizer = Lookaround(optim.SGD([param], lr=1.0), branches, k=1, alpha=0.1)
    for _ in range(60 * branches):
        param.grad = torch.full_like(param, -ulp)
        optimizer.step()
    assert param.item() >= start + 4 * ulp


class Remembering(optim.SGD):
    """Keeps the sum of what it has seen; a user has it begin, while gradients are enabled, with a part of a graph."""

    def begin(self, param):
        self.state[param]["sum"] = param.clone()

    @torch.no_grad()
    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for param in group["params"]:
                self.state[param]["sum"].add_(param)


def test_state_that_is_part_of_a_graph_is_each_branchs_own():
    alone, branched = (nn.Parameter(torch.ones(2)) for _ in range(2))
    plain, inner = Remembering([alone], lr=0.1, momentum=0.9), Remembering([branched], lr=0.1, momentum=0.9)
    plain.begin(alone), inner.begin(branched)
    optimizer = Lookaround(inner, branches=3, k=100)
    for _ in range(4):
        alone.grad = torch.ones(2)
        plain.step()
        for _ in optimizer.around():
            branched.grad = torch.ones(2)
            optimizer.step()
            assert torch.equal(branched, alone)
            assert torch.equal(inner.state[branched]["sum"], plain.state[alone]["sum"])
