"""Trajectories worked out by hand: SGD with rate 1 on gradients written down here."""

import pytest
import torch
from torch import nn
from torch.optim import SGD

from lookaround import SAM, Lookahead, Lookaround


def run(wrap, gradients, start=0.0, **settings):
    """The weight after each step of a plain loop; gradient -1 moves it up by one."""
    weight = nn.Parameter(torch.tensor([start], dtype=torch.float64))
    optimizer = wrap(SGD([weight], lr=1.0, **settings))
    seen = []
    for gradient in gradients:
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        seen.append(weight.item())
    return seen


LOOKAHEAD = {
    # k = 1: half of every step. α = 0: φ never moves. α = 1: SGD alone.
    "k=1": (lambda o: Lookahead(o, k=1, alpha=0.5), [0.5, 1.0, 1.5, 2.0]),
    "alpha=0": (lambda o: Lookahead(o, k=2, alpha=0.0), [1.0, 0.0, 1.0, 0.0]),
    "alpha=1": (lambda o: Lookahead(o, k=2, alpha=1.0), [1.0, 2.0, 3.0, 4.0]),
    # From 0 to 2, half-way back to 1; from 1 to 3, half-way back to 2.
    "k=2": (lambda o: Lookahead(o, k=2, alpha=0.5), [1.0, 1.0, 2.0, 2.0]),
    # The first average is a real one: φ is where the first step began.
    "k=3": (lambda o: Lookahead(o, k=3, alpha=0.25), [1.0, 2.0, 0.75, 1.75]),
    # k(0) = 1, k(1) = 3.
    "k(t)": (lambda o: Lookahead(o, k=lambda t: 1 + 2 * t, alpha=0.5), [0.5, 1.5, 2.5, 2.0]),
    "d=1": (lambda o: Lookaround(o, branches=1, k=2), [1.0, 2.0, 3.0, 4.0]),
    "d=1, alpha": (lambda o: Lookaround(o, branches=1, k=2, alpha=0.5), [1.0, 1.0, 2.0, 2.0]),
}


@pytest.mark.parametrize("setting", LOOKAHEAD)
def test_one_branch(setting):
    wrap, expected = LOOKAHEAD[setting]
    assert run(wrap, [-1.0] * 4) == expected


def test_two_branches_take_turns():
    """Branch 0 moves by 1, branch 1 by 3. What is seen after a step is the branch that comes next."""
    wrap = lambda o: Lookaround(o, branches=2, k=2)  # noqa: E731
    assert run(wrap, [-1.0, -3.0] * 4) == [0.0, 1.0, 3.0, 4.0, 4.0, 5.0, 7.0, 8.0]


def test_two_branches_and_slow_weights():
    """The mean goes from 0 to 4 and φ half-way to 2; from 2 the mean goes to 6 and φ to 4."""
    wrap = lambda o: Lookaround(o, branches=2, k=2, alpha=0.5)  # noqa: E731
    assert run(wrap, [-1.0, -3.0] * 4) == [0.0, 1.0, 3.0, 2.0, 2.0, 3.0, 5.0, 4.0]


MOMENTUM = {
    # Momentum 1/2. Buffers: maintain 1, 1.5 → kept; interpolate 1.5 → 0.75; reset 1.5 → 0.
    "maintain": [1.0, 1.25, 1.25 + 1.75, 1.25 + 0.5 * (1.75 + 1.875)],
    "interpolate": [1.0, 1.25, 1.25 + 1.375, 1.25 + 0.5 * (1.375 + 1.6875)],
    "reset": [1.0, 1.25, 2.25, 2.5],
}


@pytest.mark.parametrize("state", MOMENTUM)
def test_momentum_at_an_average(state):
    wrap = lambda o: Lookahead(o, k=2, alpha=0.5, inner_state=state)  # noqa: E731
    # The buffer is minus the gradient's running sum, so the weight moves up by it.
    assert run(wrap, [-1.0] * 4, momentum=0.5) == MOMENTUM[state]


def test_phi_is_taken_at_the_first_step_not_at_construction():
    weight = nn.Parameter(torch.zeros(1))
    optimizer = Lookahead(SGD([weight], lr=1.0), k=1, alpha=0.5)
    with torch.no_grad():
        weight.fill_(8.0)
    weight.grad = -torch.ones(1)
    optimizer.step()
    assert weight.tolist() == [8.5]


@pytest.mark.parametrize(
    ("adaptive", "expected"),
    [
        # ∇ of w²/2 at (3, 4) is (3, 4), its norm 5: ε = 0.5 (0.6, 0.8).
        (False, [3 - 3.3, 4 - 4.4]),
        # |w| ∇ = (9, 16), its norm √337; ε = 0.5 w² ∇ / √337 = 0.5 (27, 64) / √337.
        (True, [-0.5 * 27 / 337**0.5, -0.5 * 64 / 337**0.5]),
    ],
)
def test_sam(adaptive, expected):
    weight = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    optimizer = SAM(SGD([weight], lr=1.0), rho=0.5, adaptive=adaptive)

    def closure():
        optimizer.zero_grad()
        loss = weight.square().sum() / 2
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 12.5
    assert weight.tolist() == pytest.approx(expected, abs=1e-12)


def test_sam_stays_where_the_gradient_is_zero_and_puts_weights_back_on_exceptions():
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = SAM(SGD([weight], lr=0.0), rho=0.5)
    calls = []

    def closure():
        weight.grad = torch.zeros(2) if len(calls) < 2 else torch.ones(2)
        calls.append(weight.tolist())
        if len(calls) == 4:
            raise KeyError
        return 0.0

    optimizer.step(closure)
    with pytest.raises(KeyError):
        optimizer.step(closure)
    assert calls[:3] == [[1.0, 2.0]] * 3
    assert calls[3] != [1.0, 2.0]
    assert weight.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_sams_norm_does_not_overflow_in_half_precision(dtype):
    """10,000 gradients of 1,000 have norm 100,000, more than a float16 holds: ε is ρ / 100 in each weight."""
    weight = nn.Parameter(torch.zeros(10_000, dtype=dtype))
    optimizer = SAM(SGD([weight], lr=0.0), rho=1.0)
    seen = []

    def closure():
        seen.append(weight.detach().clone())
        weight.grad = torch.full_like(weight, 1000.0)
        return 0.0

    optimizer.step(closure)
    torch.testing.assert_close(seen[1], torch.full_like(weight, 0.01).detach(), rtol=2e-2, atol=0)


def test_every_group_has_its_own_alpha_and_all_have_one_cadence():
    params = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = Lookahead(SGD([{"params": [p]} for p in params], lr=1.0), k=2)
    optimizer.param_groups[1]["lookahead_alpha"] = 0.25
    for _ in range(4):
        for p in params:
            p.grad = -torch.ones(1)
        optimizer.step()
    assert [p.item() for p in params] == [2.0, 1.0]


def gone_around(optimizer, body=lambda branch: None):
    """A pass in which branch 0 has the gradient 1 and branch 1 the gradient 3."""
    for branch in optimizer.around():
        body(branch)
        for param in optimizer.param_groups[0]["params"]:
            param.grad = torch.tensor([[1.0], [3.0]][branch])
        optimizer.step()


def test_an_alpha_written_in_the_body_before_a_rounds_first_step_is_that_rounds():
    weight = torch.nn.Parameter(torch.tensor([0.0]))
    optimizer = Lookaround(SGD([weight], lr=1.0), branches=2, k=1)
    gone_around(optimizer)
    assert weight.item() == -2.0  # the mean of -1 and -3

    def halve(branch):
        optimizer.alpha = 0.5

    gone_around(optimizer, halve)
    assert weight.item() == -3.0  # half-way from -2 to the mean of -3 and -5


def test_a_parameter_exchanged_in_the_body_before_a_rounds_first_step_begins_alike_in_all_branches():
    weight, other = torch.nn.Parameter(torch.tensor([0.0])), torch.nn.Parameter(torch.tensor([10.0]))
    optimizer = Lookaround(SGD([weight], lr=1.0), branches=2, k=1)
    gone_around(optimizer)
    starts = []

    def exchange(branch):
        optimizer.param_groups[0]["params"][0] = other
        starts.append(other.item())

    gone_around(optimizer, exchange)
    assert starts == [10.0, 10.0]
    assert other.item() == 8.0  # the mean of 9 and 7
