"""Convergence rates on deterministic quadratics, from the papers' transition matrices.

On ½ θᵀAθ gradient descent with momentum and an average every k steps is a linear system in each eigenvalue of A. The rate ρ is
the smallest number with ‖θ_t - θ*‖ ≤ C ρᵗ ‖θ_0 - θ*‖ for every start, t counting inner steps: the k-th root of the spectral
radius of a round.

The papers stack the k + 1 points of a round and multiply L · B^(k-1) · T (`transition_matrix`). Such a product sees the past only
through (θ_{t,0}, v), v the momentum, so all its eigenvalues but two are zero. Rates here come from that 2 × 2 system: a
million of them at once, and without the error of about ε^(1/(k-1)) that an eigenvalue solver makes on the nilpotent rest.

Momentum is kept across the average (`inner_state="maintain"`), as T has it. "lookaround" is the paper's stand-in for the
noise-free case, L averaging the k + 1 points of one trajectory. The optimizer itself, whose d branches coincide without
noise, contracts at the rate of "momentum".
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lookaround.theory.arrays import (
    ArrayLike,
    common_shape,
    momentum_factor,
    positive,
    single,
    spectrum,
    unit_interval,
    whole,
)

RATE_METHODS = ("momentum", "lookahead", "lookaround")


def convergence_rate(
    method: str,
    eigenvalues: ArrayLike,
    lr: ArrayLike,
    momentum: ArrayLike,
    *,
    k: int = 5,
    alpha: ArrayLike = 0.5,
) -> Tensor:
    """Contraction ρ per inner step on a deterministic quadratic, the slowest over its eigenvalues.

    Args:
        method: "momentum" (classical momentum alone), "lookahead", or "lookaround" (see the module).
        eigenvalues: spectrum of A, above 0; its last axis is the spectrum of one problem.
        lr: learning rate η; broadcasts with the leading axes (a scalar eigenvalue counts as a spectrum of one).
        momentum: β in [0, 1); broadcasts like lr.
        k: inner steps in a round.
        alpha: weight of the fast weights, "lookahead" only; broadcasts like lr.

    Returns:
        Float64 tensor of rates: the leading axes broadcast. A value of 1 or more means that the iterates do not converge.

    Raises:
        ValueError: an unknown method or an argument outside its range.

    Example:
        >>> from lookaround.theory import convergence_rate
        >>> convergence_rate("momentum", [1.0, 0.1], lr=1.0, momentum=0.0).item()    # max |1 - ηa|
        0.9
        >>> convergence_rate("lookahead", 1.0, lr=0.5, momentum=0.0, k=1, alpha=0.5).item()    # 1 - α + α(1 - ηa)
        0.75

    Source: Lookahead paper, section 3.2 and appendix B.1; Lookaround paper, section 3.2.2 and appendix B.2.
    """
    _check_method(method)
    curvatures = spectrum("eigenvalues", eigenvalues)
    rate, damping = positive("lr", lr)[..., None], momentum_factor(momentum)[..., None]
    weight = unit_interval("alpha", alpha)[..., None]
    period = single("k", whole("k", k, 1))
    common_shape(eigenvalues=curvatures, lr=rate, momentum=damping, alpha=weight)
    rates = _spectral_radius(_round(method, rate * curvatures, damping, period, weight)).amax(-1)
    return rates if method == "momentum" else rates.pow(1 / period)


def _check_method(method: str) -> None:
    if method not in RATE_METHODS:
        raise ValueError(f"method must be one of {', '.join(RATE_METHODS)}; got {method!r}")


def _round(method: str, product: Tensor, momentum: Tensor, k: int, alpha: Tensor) -> Tensor:
    """A round (one step, for momentum alone) as a map of (φ, ηv): its two columns run side by side in the last axis.

    Carrying ηv instead of v keeps the entries comparable at any learning rate.
    """
    product, momentum = torch.broadcast_tensors(product[..., None], momentum[..., None])
    slow = torch.tensor([1.0, 0.0], dtype=torch.float64, device=product.device)
    fast, velocity = slow.expand(*product.shape[:-1], 2), slow.flip(0).expand(*product.shape[:-1], 2)
    total = fast
    for _ in range(1 if method == "momentum" else k):
        velocity = momentum * velocity + product * fast
        fast = fast - velocity
        total = total + fast
    if method == "lookahead":
        fast = slow + alpha[..., None] * (fast - slow)
    elif method == "lookaround":
        fast = total / (k + 1)
    return torch.stack(torch.broadcast_tensors(fast, velocity), dim=-2)


def _spectral_radius(matrix: Tensor) -> Tensor:
    """Largest |eigenvalue| of 2 × 2 matrices, by the quadratic formula."""
    half_trace = (matrix[..., 0, 0] + matrix[..., 1, 1]) / 2
    determinant = matrix[..., 0, 0] * matrix[..., 1, 1] - matrix[..., 0, 1] * matrix[..., 1, 0]
    discriminant = (matrix[..., 0, 0] - matrix[..., 1, 1]).square() / 4 + matrix[..., 0, 1] * matrix[..., 1, 0]
    real = half_trace.abs() + discriminant.clamp_min(0).sqrt()
    return real.where(discriminant >= 0, determinant.clamp_min(0).sqrt())


def transition_matrix(
    method: str, eigenvalue: ArrayLike, lr: ArrayLike, momentum: ArrayLike, *, k: int = 5, alpha: ArrayLike = 0.5
) -> Tensor:
    """The papers' L · B^(k-1) · T for one eigenvalue: a round as a map of the stacked points (θ_{t,0}, θ_{t-1,k}, …, θ_{t-1,1}).

    Args:
        method: "lookahead", or "lookaround" with the L that averages k + 1 points.
        eigenvalue, lr, momentum, alpha: numbers, as in `convergence_rate`.
        k: inner steps in a round, at least 2 (the stack must hold the two points that momentum needs).

    Returns:
        Float64 matrix of k + 1 rows.

    Example:
        >>> from lookaround.theory import transition_matrix
        >>> matrix = transition_matrix("lookahead", 1.0, 0.5, 0.0, k=2, alpha=0.5)
        >>> matrix[0].tolist()    # φ' = (φ + (1 - ηa)² φ)/2
        [0.625, 0.0, 0.0]

    Source: Lookahead paper, appendix B.1; Lookaround paper, appendix B.2.
    """
    _check_method(method)
    if method == "momentum":
        raise ValueError("'momentum' has no average, hence no L; use convergence_rate")
    size = single("k", whole("k", k, 2)) + 1
    product = float(positive("lr", lr) * positive("eigenvalue", eigenvalue))
    damping, weight = float(momentum_factor(momentum)), float(unit_interval("alpha", alpha))
    shift = torch.diag(torch.ones(size - 1, dtype=torch.float64), -1)
    average, step, first = shift.clone(), shift.clone(), shift.clone()
    average[0] = 1 / size
    if method == "lookahead":
        average[0] = 0
        average[0, 0], average[0, -1] = weight, 1 - weight
    step[0, :2] = torch.tensor([1 + damping - product, -damping], dtype=torch.float64)
    first[0, :3] = torch.tensor([1 - product, damping, -damping], dtype=torch.float64)
    product_of_three: Tensor = average @ torch.linalg.matrix_power(step, size - 2) @ first
    return product_of_three


class OptimalRate(NamedTuple):
    """Best learning rate, in units of 1/L, and the rate ρ it gives.

    Source: Lookahead paper, Figure 4; Lookaround paper, Figure 2.
    """

    lr: Tensor
    rate: Tensor


GRID = (4000, 64, 64, 64)  # learning rates in the first search and in each narrower one


def optimal_rate(
    method: str,
    condition_number: ArrayLike,
    momentum: float,
    *,
    k: int = 20,
    alpha: float = 0.5,
    points: int = 2,
) -> OptimalRate:
    """Fastest convergence on quadratics of a condition number, over all learning rates at a fixed momentum.

    The rate has many local minima in the learning rate (θ_k comes back to φ whenever the oscillation fits k steps), so the
    search is a logarithmic grid over the whole stable range, narrowed around its best point.

    Args:
        method, momentum, k, alpha: as in `convergence_rate`.
        condition_number: κ ≥ 1, a number or an array.
        points: size of the spectrum, logarithmically spaced on [1/κ, 1]. 2, the papers' picture, is the extremes alone; more is
            harder on methods that average, because some eigenvalue in between always resonates with k.

    Returns:
        `OptimalRate`, each field of the shape of `condition_number`.

    Example:
        >>> from lookaround.theory import optimal_rate
        >>> lr, rate = optimal_rate("momentum", 9.0, 0.0)
        >>> round(lr.item(), 3), round(rate.item(), 3)    # 2/(μ + L) and (κ - 1)/(κ + 1)
        (1.8, 0.8)

    Source: Lookahead paper, Figure 4; Lookaround paper, Figure 2.
    """
    kappa = positive("condition_number", condition_number)
    lower_bound(kappa)
    whole("points", points, 2)
    exponents = torch.linspace(-1, 0, points, dtype=torch.float64)
    spectra = kappa[..., None, None] ** exponents
    damping = float(momentum_factor(momentum))
    high = torch.full_like(kappa, 2 * (1 + damping)).log()
    low = -kappa.log() + math.log((1 - damping) ** 2 / 8)
    for size in GRID:
        grid = low[..., None] + (high - low)[..., None] * torch.linspace(0, 1, size, dtype=torch.float64)
        rates = convergence_rate(method, spectra, grid.exp(), damping, k=k, alpha=alpha)
        best = rates.argmin(-1, keepdim=True)
        low = grid.gather(-1, (best - 1).clamp_min(0)).squeeze(-1)
        high = grid.gather(-1, (best + 1).clamp_max(size - 1)).squeeze(-1)
    return OptimalRate(grid.gather(-1, best).squeeze(-1).exp(), rates.gather(-1, best).squeeze(-1))


def lower_bound(condition_number: ArrayLike) -> Tensor:
    """(√κ - 1)/(√κ + 1): no first-order method contracts faster on every quadratic of condition number κ.

    Example:
        >>> from lookaround.theory import lower_bound
        >>> lower_bound(9.0).item()
        0.5

    Source: Nesterov 2004, "Introductory lectures on convex optimization", theorem 2.1.13; the bound in the Lookahead
    paper, Figure 4.
    """
    kappa = positive("condition_number", condition_number)
    if bool((kappa < 1).any()):
        raise ValueError(f"condition_number must be at least 1; got {float(kappa.min())}")
    root = kappa.sqrt()
    return (root - 1) / (root + 1)
