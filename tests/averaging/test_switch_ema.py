"""Switch EMA against the loop of the paper written out, alone and inside the wrappers."""

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lookaround import Lookahead, Lookaround
from lookaround.averaging import SwitchEMA, exponential, lawa, power, uniform


def problem(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)).double()
    batches = [torch.randn(6, 4).double() for _ in range(20)]
    return model, torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9), batches


def train_step(model, optimizer, batch):
    optimizer.zero_grad()
    model(batch).square().mean().backward()
    optimizer.step()


@given(st.integers(1, 9), st.floats(0, 0.99), st.integers(1, 20), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_it_is_the_papers_loop(every, decay, steps, seed):
    model, optimizer, batches = problem(seed)
    switch = SwitchEMA(model, every=every, rule=exponential(decay))
    other, other_optimizer, _ = problem(seed)
    ema = None
    for n, batch in enumerate(batches[:steps], start=1):
        train_step(model, optimizer, batch)
        assert switch.step() == (n % every == 0)
        train_step(other, other_optimizer, batch)
        now = {k: v.clone() for k, v in other.state_dict().items()}
        ema = now if ema is None else {
            k: decay * ema[k] + (1 - decay) * v if v.is_floating_point() else v for k, v in now.items()
        }  # fmt: skip
        if n % every == 0:
            other.load_state_dict(ema)
        for key, value in other.state_dict().items():
            torch.testing.assert_close(model.state_dict()[key], value, rtol=1e-9, atol=1e-12)
    with switch.average.averaged():
        for key, value in ema.items():
            torch.testing.assert_close(model.state_dict()[key], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("cut", [0, 1, 4, 5, 19])
def test_resume_is_bit_exact_from_any_step(cut):
    def go(model, optimizer, switch, batches):
        for batch in batches:
            train_step(model, optimizer, batch)
            switch.step()

    model, optimizer, batches = problem()
    go(model, optimizer, SwitchEMA(model, every=5, rule=power(0.1)), batches)
    first, first_optimizer, _ = problem()
    switch = SwitchEMA(first, every=5, rule=power(0.1))
    go(first, first_optimizer, switch, batches[:cut])
    file = io.BytesIO()
    torch.save([first.state_dict(), first_optimizer.state_dict(), switch.state_dict()], file)
    file.seek(0)
    second, second_optimizer, _ = problem()
    resumed = SwitchEMA(second, every=5, rule=power(0.1))
    for target, state in zip([second, second_optimizer, resumed], torch.load(file, weights_only=True), strict=True):
        target.load_state_dict(state)
    go(second, second_optimizer, resumed, batches[cut:])
    assert all(torch.equal(v, second.state_dict()[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    "wrap",
    [lambda i: Lookahead(i, k=4, alpha=0.5), lambda i: Lookaround(i, branches=2, k=3)],
    ids=["lookahead", "lookaround"],
)
def test_inside_a_run_of_rounds_the_average_is_sampled_and_every_branch_starts_again_from_it(wrap):
    model, inner, batches = problem()
    optimizer = wrap(inner)
    switch = SwitchEMA(model, every=7, rule=uniform(), point=optimizer.averaged, restart=optimizer.restart)
    points = []
    for n, batch in enumerate(batches, start=1):
        train_step(model, optimizer, batch)
        with optimizer.averaged():
            points.append([p.detach().clone() for p in model.parameters()])
        switched = switch.step()
        assert switched == (n % 7 == 0)
        if switched:
            mean = [sum(p) / n for p in zip(*points, strict=True)]
            for context in (None, optimizer.averaged()):
                if context is None:
                    for p, m in zip(model.parameters(), mean, strict=True):
                        torch.testing.assert_close(p.detach(), m, rtol=1e-9, atol=1e-12)
                else:  # nothing of the round before is left to be averaged in
                    with context:
                        for p, m in zip(model.parameters(), mean, strict=True):
                            torch.testing.assert_close(p.detach(), m, rtol=1e-9, atol=1e-12)


def test_mistakes_are_errors_and_change_nothing():
    model, _, _ = problem()
    for every in (0, -1, 2.0, True and 1.5):
        with pytest.raises(ValueError, match="every must be a whole number"):
            SwitchEMA(model, every=every)
    switch = SwitchEMA(model, every=3)
    assert switch.average.rules == (exponential(0.999),)
    switch.step()
    state = copy.deepcopy(switch.state_dict())
    with pytest.raises(ValueError, match="the state is of every=3, this SwitchEMA has every=4"):
        SwitchEMA(model, every=4).load_state_dict(state)
    for damaged in ({}, None, {**state, "every": "3"}, {**state, "average": {}}):
        with pytest.raises(ValueError):
            switch.load_state_dict(damaged)
    with switch.average.averaged(), pytest.raises(ValueError, match=r"inside averaged\(\)"):
        switch.step()
    assert switch.average.count == 1


def test_what_the_wrapper_holds_beside_the_model_goes_on_from_its_average():
    one, other = (nn.Linear(1, 1, bias=False) for _ in range(2))
    for model in (one, other):
        nn.init.zeros_(model.weight)
    optimizer = Lookaround(torch.optim.SGD([one.weight, other.weight], lr=1.0), branches=2, k=2)
    for branch in optimizer.around():
        one.weight.grad = torch.full_like(one.weight, [1.0, 3.0][branch])
        other.weight.grad = torch.full_like(other.weight, [2.0, 6.0][branch])
        optimizer.step()
    assert SwitchEMA(one, every=1, rule=lawa(1)).step()
    assert (one.weight.item(), other.weight.item()) == (-2.0, -4.0)
    with optimizer.averaged():
        assert (one.weight.item(), other.weight.item()) == (-2.0, -4.0)
