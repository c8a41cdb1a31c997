"""How long a method takes to come within ε of its fixed point on the noisy quadratic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Unpack

import torch
from torch import Tensor

from lookaround.theory.arrays import ArrayLike, positive
from lookaround.theory.closed_form import ClosedForm
from lookaround.theory.linear_system import LinearSystem
from lookaround.theory.noisy_quadratic import build_chain
from lookaround.theory.settings import Options, resolve


def rounds_to_fixed_point(
    method: str,
    a: ArrayLike,
    sigma2: ArrayLike,
    lr: ArrayLike,
    epsilon: ArrayLike,
    **options: Unpack[Options],
) -> Tensor:
    """Rounds until the moments are within ε of their fixed point, measured as the loss measures them.

    The distance is ½ Σᵢ aᵢ(E[θᵢ]² + |V[θᵢ] - V*ᵢ|), an upper bound of |loss - steady-state loss|. Without momentum and nesting it
    never grows again; with them it may oscillate, and the answer is the first round within ε. Multiply by k for inner steps.

    Args:
        epsilon: distance above 0, in units of the loss; broadcasts with the grid, coordinates summed out.
        method, a, sigma2, lr, **options: as in `moments`.

    Returns:
        Float64 tensor of whole numbers, of the broadcast shape without its last axis.

    Raises:
        ValueError: epsilon not above 0, or what `moments` and `steady_state_variance` raise.

    Example:
        >>> from lookaround.theory import rounds_to_fixed_point
        >>> rounds_to_fixed_point("sgd", a=1.0, sigma2=0.0, lr=0.5, epsilon=1e-3, k=1).item()    # ½ · 4⁻ᵗ ≤ 10⁻³
        5.0

    Source: ours, from the moments of the Lookahead paper, equations 8 to 11.
    """
    setting = resolve(method, a, sigma2, lr, **options)
    tolerance = positive("epsilon", epsilon)
    chain = build_chain(setting)
    steady = chain.steady

    def within(mean: Tensor, variance: Tensor) -> Tensor:
        distance = (setting.a * (mean**2 + (variance - steady).abs())).sum(-1) / 2
        return distance <= tolerance

    if isinstance(chain, LinearSystem):
        return _first_passage(chain, within)
    return _bisect(chain, within)


def _bisect(chain: ClosedForm, within: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Smallest number of rounds within the tolerance, for distances that only shrink."""

    def reached(rounds: Tensor) -> Tensor:
        at = rounds[..., None]
        return within(*chain.moments(at, torch.zeros_like(at)))

    low = -torch.ones_like(reached(torch.zeros((), dtype=torch.float64)), dtype=torch.float64)
    high = torch.zeros_like(low)
    while not bool((done := reached(high)).all()):
        low, high = low.where(done, high), high.where(done, 2 * high + 1)
    while bool((high - low > 1).any()):
        middle = ((low + high) / 2).floor()
        done = reached(middle)
        low, high = low.where(done, middle), middle.where(done, high)
    return high


def _first_passage(chain: LinearSystem, within: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """First round (first cycle, where a cycle is several rounds) within the tolerance."""
    answer: Tensor | None = None
    for rounds, mean, variance in chain.per_cycle():
        done = within(mean, variance)
        if answer is None:
            answer = torch.full(done.shape, torch.nan, dtype=torch.float64)
        answer = answer.where(~(done & answer.isnan()), float(rounds))
        if not bool(answer.isnan().any()):
            break
    assert answer is not None
    return answer
