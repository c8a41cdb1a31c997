"""Rates against the papers' matrices, against hand calculation, and against contraction measured by running the optimizers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import SGD

from lookaround import Lookahead
from lookaround.theory import (
    chebyshev_spectrum,
    convergence_rate,
    expected_loss,
    lower_bound,
    moments,
    optimal_rate,
    power_law_spectrum,
    predict,
    rounds_to_fixed_point,
    simulate,
    steady_state_loss,
    steady_state_variance,
    transition_matrix,
)
from lookaround.theory.monte_carlo import measured_contraction


@settings(deadline=None, derandomize=True)
@given(
    st.sampled_from(["lookahead", "lookaround"]),
    st.floats(0.05, 3.0),
    st.floats(0.1, 0.95),
    st.integers(2, 6),
    st.floats(0.05, 1.0),
)
def test_rates_are_the_spectral_radius_of_the_papers_matrices(method, lr, momentum, k, alpha):
    """All eigenvalues but two are zero, so trace and squared trace fix them; a solver would err on the nilpotent rest."""
    matrix = transition_matrix(method, 1.0, lr, momentum, k=k, alpha=alpha)
    total, squares = matrix.trace().item(), (matrix @ matrix).trace().item()
    root = complex(squares / 2 - total**2 / 4) ** 0.5
    radius = max(abs(total / 2 + root), abs(total / 2 - root))
    ours = convergence_rate(method, 1.0, lr, momentum, k=k, alpha=alpha).item() ** k
    assert ours == pytest.approx(radius, rel=1e-6, abs=1e-7)
    cubes = torch.linalg.matrix_power(matrix, 3).trace().item()  # and with two, the third power is theirs alone
    assert cubes == pytest.approx(total * (3 * squares - total**2) / 2, rel=1e-9, abs=1e-9)


def test_the_matrices_move_the_stacked_points_of_a_round():
    """L · B^(k-1) · T applied to a stack is k momentum steps written out, and the average."""
    k, lr, momentum, alpha = 4, 0.3, 0.8, 0.6
    stack = torch.tensor([1.0, 0.7, -0.2, 0.5, 0.9], dtype=torch.float64)
    points, velocity = [stack[0]], stack[2] - stack[1]  # γ v, from the last two points of the round before
    for _ in range(k):
        velocity = momentum * velocity + lr * points[-1]
        points.append(points[-1] - velocity)
    averages = {
        "lookahead": points[0] + alpha * (points[-1] - points[0]),
        "lookaround": torch.stack(points).mean(),
    }
    for method, average in averages.items():
        after = transition_matrix(method, 1.0, lr, momentum, k=k, alpha=alpha) @ stack
        torch.testing.assert_close(after, torch.stack([average, *reversed(points[1:])]))


MEASURED = [
    ([1.0, 0.1, 0.01], 1.0, 0.9, 5, 0.5),
    ([1.0, 0.01], 3.0, 0.99, 20, 0.5),
    ([1.0, 0.3], 0.2, 0.0, 5, 0.8),
    ([2.0, 0.5, 0.1], 0.9, 0.5, 3, 0.3),
    ([1.0, 0.001], 1.5, 0.95, 10, 0.8),
]


@pytest.mark.parametrize(("spectrum", "lr", "momentum", "k", "alpha"), MEASURED)
def test_lookahead_contracts_at_its_rate(spectrum, lr, momentum, k, alpha):
    measured = measured_contraction(
        lambda p: Lookahead(SGD(p, lr=lr, momentum=momentum), k=k, alpha=alpha), spectrum, steps=8000, window=40
    )
    assert measured == pytest.approx(
        convergence_rate("lookahead", spectrum, lr, momentum, k=k, alpha=alpha).item(), rel=1e-3
    )


@pytest.mark.parametrize(("spectrum", "lr", "momentum", "k", "alpha"), MEASURED)
def test_momentum_contracts_at_its_rate(spectrum, lr, momentum, k, alpha):
    measured = measured_contraction(lambda p: SGD(p, lr=lr, momentum=momentum), spectrum, steps=8000, window=40)
    assert measured == pytest.approx(convergence_rate("momentum", spectrum, lr, momentum).item(), rel=1e-3)


def trajectory_average_contraction(spectrum, lr, momentum, k, rounds):
    """The Lookaround paper's noise-free model run step by step: φ is the mean of the k + 1 points, momentum is kept."""
    a = torch.tensor(spectrum, dtype=torch.float64)
    slow, velocity, scale = torch.ones_like(a), torch.zeros_like(a), 0.0
    history = []
    for _ in range(rounds):
        point, points = slow, [slow]
        for _ in range(k):
            velocity = momentum * velocity + a * point
            point = point - lr * velocity
            points.append(point)
        slow = torch.stack(points).mean(0)
        size = torch.cat([slow, lr * velocity]).norm()
        slow, velocity, scale = slow / size, velocity / size, scale + math.log(size)
        history.append(scale)
    return math.exp((history[-1] - history[rounds // 2]) / ((rounds - 1 - rounds // 2) * k))


@pytest.mark.parametrize(("spectrum", "lr", "momentum", "k", "alpha"), MEASURED)
def test_lookaround_contracts_at_its_rate(spectrum, lr, momentum, k, alpha):
    measured = trajectory_average_contraction(spectrum, lr, momentum, k, rounds=8000 // k)
    assert measured == pytest.approx(convergence_rate("lookaround", spectrum, lr, momentum, k=k).item(), rel=1e-3)


@settings(deadline=None, derandomize=True)
@given(st.floats(0.01, 3.9), st.floats(0, 0.99), st.integers(1, 20))
def test_lookahead_at_alpha_one_is_momentum(lr, momentum, k):
    spectrum = [1.0, 0.1]
    whole = convergence_rate("lookahead", spectrum, lr, momentum, k=k, alpha=1.0).item()
    assert whole == pytest.approx(convergence_rate("momentum", spectrum, lr, momentum).item(), rel=1e-7)


def test_one_step_rounds_by_hand():
    """k = 1 without momentum: θ' = (1 - α + α(1 - ηa)) θ and θ' = (θ + (1 - ηa) θ)/2."""
    assert convergence_rate("lookahead", 1.0, 0.4, 0.0, k=1, alpha=0.5).item() == pytest.approx(0.8, rel=1e-15)
    assert convergence_rate("lookaround", 1.0, 0.4, 0.0, k=1).item() == pytest.approx(0.8, rel=1e-15)
    assert convergence_rate("momentum", [1.0, 0.5], 1.6, 0.0).item() == pytest.approx(0.6, rel=1e-15)


def test_one_step_rounds_with_momentum_by_hand():
    """k = 1, α = 1/2, p = ηa = 0.5, β = 0.5: (φ, ηv) goes to ((1 - αp) φ - αβ ηv, p φ + β ηv), of trace 1.25, determinant 0.5."""
    discriminant = 1.25**2 / 4 - 0.5
    assert discriminant < 0  # a complex pair: its modulus is the root of the determinant
    assert convergence_rate("lookahead", 1.0, 0.5, 0.5, k=1, alpha=0.5).item() == pytest.approx(0.5**0.5, rel=1e-14)


def test_momentum_is_flat_at_the_root_of_beta_where_it_is_under_damped():
    kappa = torch.logspace(1, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(
        optimal_rate("momentum", kappa, 0.99).rate, torch.full_like(kappa, 0.99**0.5), rtol=1e-7, atol=0
    )


def test_gradient_descent_has_its_known_optimum():
    kappa = torch.tensor([2.0, 10.0, 1000.0], dtype=torch.float64)
    lr, rate = optimal_rate("momentum", kappa, 0.0)
    torch.testing.assert_close(lr, 2 / (1 + 1 / kappa), rtol=1e-5, atol=0)
    torch.testing.assert_close(rate, (kappa - 1) / (kappa + 1), rtol=1e-6, atol=0)


def test_tuned_momentum_attains_the_lower_bound():
    """β = ((√κ - 1)/(√κ + 1))² is heavy ball's optimum, where its rate is the bound."""
    kappa = 100.0
    bound = lower_bound(kappa).item()
    assert bound == pytest.approx(9 / 11)
    lr = 4 / (1 + kappa**-0.5) ** 2
    assert convergence_rate("momentum", [1.0, 1 / kappa], lr, bound**2).item() == pytest.approx(bound, abs=1e-7)
    assert optimal_rate("momentum", kappa, bound**2).rate.item() == pytest.approx(bound, abs=2e-3)


# What the papers say (Lookahead paper, Figure 4; Lookaround paper, Figure 2: k = 20, α = 1/2, β = 0.99).


def test_both_beat_momentum_where_it_is_under_damped():
    kappa = torch.logspace(1, 4, 7, dtype=torch.float64)
    momentum, lookahead, lookaround = (
        optimal_rate(method, kappa, 0.99).rate for method in ("momentum", "lookahead", "lookaround")
    )
    assert (lookahead < momentum).all()
    assert (lookaround < momentum).all()
    assert (lookaround[:1] < lookahead[:1]).all()  # "faster in the low condition number case"
    assert (torch.stack([momentum, lookahead, lookaround]) > lower_bound(kappa)).all()


def test_both_are_slower_than_momentum_where_it_is_over_damped_and_close_to_each_other():
    kappa = torch.logspace(6, 7, 3, dtype=torch.float64)
    momentum, lookahead, lookaround = (
        1 - optimal_rate(method, kappa, 0.99).rate for method in ("momentum", "lookahead", "lookaround")
    )
    assert (lookahead < momentum).all()
    assert (lookaround < momentum).all()
    torch.testing.assert_close(lookaround, lookahead, rtol=0.05, atol=0)


def test_a_dense_spectrum_takes_most_of_the_gain_away():
    """The papers' picture is that of the two extreme eigenvalues: with many between them some always resonate with k."""
    two, many = (1 - optimal_rate("lookahead", 1000.0, 0.99, points=points).rate.item() for points in (2, 50))
    flat = 1 - 0.99**0.5
    assert two > 2.5 * flat
    assert many < 1.2 * flat


def test_rates_broadcast_over_problems_and_settings():
    spectra = torch.tensor([[1.0, 0.1], [1.0, 0.5]], dtype=torch.float64)[:, None]
    lr = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    rates = convergence_rate("lookahead", spectra, lr, 0.9, k=3, alpha=0.5)
    assert rates.shape == (2, 3)
    assert rates[1, 2] == convergence_rate("lookahead", [1.0, 0.5], 1.0, 0.9, k=3, alpha=0.5)


def test_spectra():
    assert power_law_spectrum(3, 2.0).tolist() == [1.0, 0.25, pytest.approx(1 / 9)]
    nodes = chebyshev_spectrum(101, 1000.0)
    assert nodes[0].item() == pytest.approx(1)
    assert nodes[-1].item() == pytest.approx(1e-3)
    assert (nodes.diff() < 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: convergence_rate("sgd", 1.0, 0.1, 0.9), "method must be one of momentum, lookahead, lookaround"),
        (lambda: convergence_rate("momentum", 0.0, 0.1, 0.9), "eigenvalues must be greater than 0"),
        (lambda: convergence_rate("momentum", 1.0, -0.1, 0.9), "lr must be greater than 0"),
        (lambda: convergence_rate("momentum", 1.0, 0.1, 1.0), r"momentum must lie in \[0, 1\)"),
        (lambda: convergence_rate("lookahead", 1.0, 0.1, 0.9, alpha=0.0), r"alpha must lie in \(0, 1\]"),
        (lambda: convergence_rate("lookahead", 1.0, 0.1, 0.9, k=0), "k must be a whole number of at least 1"),
        (lambda: transition_matrix("lookahead", 1.0, 0.1, 0.9, k=1), "k must be a whole number of at least 2"),
        (lambda: transition_matrix("momentum", 1.0, 0.1, 0.9), "has no average"),
        (lambda: lower_bound(0.5), "condition_number must be at least 1"),
        (lambda: optimal_rate("momentum", 0.5, 0.9), "condition_number must be at least 1"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_condition_number_below_one_is_refused():
    with pytest.raises(
        ValueError, match=r"condition_number is the largest curvature over the least, at least 1; got 0\.5"
    ):
        chebyshev_spectrum(2, 0.5)
    assert chebyshev_spectrum(2, 1.0).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    "ask",
    [
        lambda empty: convergence_rate("momentum", empty, lr=1.0, momentum=0.0),
        lambda empty: measured_contraction(lambda p: torch.optim.SGD(p, lr=0.1), empty),
        lambda empty: moments("sgd", empty, 1.0, 0.1, rounds=1),
        lambda empty: expected_loss("sgd", empty, 1.0, 0.1, rounds=1),
        lambda empty: steady_state_variance("lookahead", empty, 1.0, 0.1),
        lambda empty: steady_state_loss("lookaround", empty, 1.0, 0.1),
        lambda empty: simulate("sgd", empty, 1.0, 0.1, steps=1),
        lambda empty: rounds_to_fixed_point("sgd", empty, 1.0, 0.1, 0.1),
        lambda empty: predict(empty, 1.0, 0.1),
    ],
)
@pytest.mark.parametrize("empty", [[], torch.zeros(0), torch.zeros(3, 0)])
def test_an_empty_spectrum_is_refused_by_name(ask, empty):
    with pytest.raises(ValueError, match=r"(a|eigenvalues|curvature) must hold at least one curvature"):
        ask(empty)


def test_other_empty_arguments_are_refused_by_name():
    with pytest.raises(ValueError, match="sigma2 is empty"):
        expected_loss("sgd", 1.0, [], 0.1, rounds=1)
    with pytest.raises(ValueError, match="lr is empty"):
        steady_state_loss("sgd", 1.0, 1.0, torch.zeros(0, 1))
