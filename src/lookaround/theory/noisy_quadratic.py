"""Exact moments, losses and fixed points on the noisy quadratic model.

The model (Lookahead paper, eq. 4; Lookaround paper, section 3.2.1): every gradient is that of ½(θ - c)ᵀA(θ - c) with a fresh
c ~ N(0, Σ), A and Σ diagonal. Its coordinates are independent, so `a` and `sigma2` are the two diagonals.

One rule for every function here: the arguments broadcast together, and the last axis counts coordinates. A grid of 100 learning
rates by 50 α over n coordinates is `lr[:, None, None]`, `alpha[:, None]`, `a` of shape (n,).

Methods, with what each of them uses beside `a`, `sigma2`, `lr` and `momentum`:

- `"sgd"`: nothing (`k` only says how many steps count as a round);
- `"sgd-large-batch"`: `branches`, the factor by which the batch grows and the noise variance shrinks;
- `"lookahead"`: `k`, `alpha` (default 0.5);
- `"lookaround"`: `k`, `branches`, `alpha` (default 1);
- `"lookaround+lookahead"`: the same, each branch running Lookahead with `inner_k`, `inner_alpha` around SGD. `k` still counts
  SGD's steps and need not be a multiple of `inner_k`; the outer average moves the inner slow weights like the weights.

Momentum is torch's: v ← βv + g, θ ← θ - γv, the buffer starting at 0 and kept across averages (`inner_state="maintain"`).

On this model Lookaround with d branches has, step for step, the moments of a d-times larger batch: what it gains beyond that on
neural networks lies in what the model leaves out (changing curvature, augmentations that differ).
"""

from __future__ import annotations

from typing import NamedTuple, Unpack

import torch
from torch import Tensor

from lookaround.theory.arrays import ArrayLike, whole
from lookaround.theory.closed_form import ClosedForm
from lookaround.theory.linear_system import LinearSystem
from lookaround.theory.settings import Options, Setting, resolve

# Entries of the grid that `expected_loss` handles at a time: temporaries stay in a core's cache, and torch starts no threads,
# whose joining would cost more than they gain.
BLOCK = 1 << 15


class Moments(NamedTuple):
    """Mean and variance of the weights, coordinate by coordinate.

    Source: Lookahead paper, section 3.1; Lookaround paper, Lemma 1.
    """

    mean: Tensor
    variance: Tensor


def build_chain(setting: Setting) -> ClosedForm | LinearSystem:
    """The cheapest exact description of a setting: closed form under plain SGD, the linear recursion otherwise."""
    if setting.nested or bool((setting.momentum != 0).any()):
        return LinearSystem(setting)
    return ClosedForm(setting)


def _horizons(
    setting: Setting, rounds: ArrayLike | None, steps: ArrayLike | None
) -> tuple[torch.Size, list[tuple[Tensor, Tensor]]]:
    """Every horizon as whole rounds and the steps of the next that follow them."""
    if (rounds is None) == (steps is None):
        raise ValueError("give the horizon once: either rounds, or steps=... in inner steps")
    if rounds is not None:
        given = whole("rounds", rounds, 0)
        pairs = [(horizon, torch.zeros_like(horizon)) for horizon in given.flatten()]
    else:
        given = whole("steps", () if steps is None else steps, 0)
        pairs = [
            (torch.div(horizon, setting.k, rounding_mode="floor"), horizon % setting.k) for horizon in given.flatten()
        ]
    if given.dim() > 1:
        raise ValueError(f"horizons must be one number or a one-dimensional array; got shape {tuple(given.shape)}")
    return given.shape, pairs


def moments(
    method: str,
    a: ArrayLike,
    sigma2: ArrayLike,
    lr: ArrayLike,
    rounds: ArrayLike | None = None,
    *,
    steps: ArrayLike | None = None,
    **options: Unpack[Options],
) -> Moments:
    """Exact mean and variance of the weights after some rounds (k inner steps and an average) or inner steps.

    A horizon inside a round is answered for the weights that `averaged()` would give there: φ + α(mean of the branches - φ).

    Args:
        method: see the module.
        a: curvatures, the diagonal of A, above 0.
        sigma2: noise variances, the diagonal of Σ.
        lr: learning rate γ, below 2(1 + momentum)/max(a).
        rounds: horizon or one-dimensional array of horizons, in rounds.
        steps: the same in inner steps, instead of `rounds`.
        **options: see `Options`.

    Returns:
        Float64 tensors of shape horizons + broadcast shape; a single horizon adds no axis.

    Raises:
        ValueError: a setting outside its range, an unknown method, both or neither of `rounds` and `steps`.

    Example:
        >>> from lookaround.theory import moments
        >>> mean, variance = moments("lookahead", a=1.0, sigma2=1.0, lr=0.5, rounds=1, k=2, alpha=0.5)
        >>> mean.item(), variance.item()    # 1 - α + α q², α² γ² (1 + q²) with q = 1/2
        (0.625, 0.078125)

    Source: Lookahead paper, eq. 8 to 11; Lookaround paper, Lemma 1 with its variance corrected; momentum is ours.
    """
    setting = resolve(method, a, sigma2, lr, **options)
    chain = build_chain(setting)
    shape, horizons = _horizons(setting, rounds, steps)
    pairs = [torch.broadcast_tensors(*chain.moments(*horizon)) for horizon in horizons]
    mean, variance = (torch.stack([pair[which] for pair in pairs]) for which in (0, 1))
    return Moments(mean.reshape(shape + mean.shape[1:]), variance.reshape(shape + variance.shape[1:]))


def expected_loss(
    method: str,
    a: ArrayLike,
    sigma2: ArrayLike,
    lr: ArrayLike,
    rounds: ArrayLike | None = None,
    *,
    steps: ArrayLike | None = None,
    excess: bool = False,
    **options: Unpack[Options],
) -> Tensor:
    """Expected loss ½ Σᵢ aᵢ(E[θᵢ]² + V[θᵢ] + σᵢ²) after some rounds or inner steps, exact.

    Takes what `moments` takes, and sums over the last axis, the coordinates.

    Args:
        excess: leave out the irreducible part ½ Σᵢ aᵢσᵢ², which no weights can lower.

    Returns:
        Float64 tensor of shape horizons + broadcast shape without its last axis.

    Example:
        >>> from lookaround.theory import expected_loss
        >>> expected_loss("sgd", a=[1.0, 0.5], sigma2=[1.0, 2.0], lr=0.5, steps=[0, 1], excess=True)
        tensor([0.7500, 0.4219], dtype=torch.float64)

    Source: Lookahead paper, eq. 5; Lookaround paper, eq. 3.
    """
    setting = resolve(method, a, sigma2, lr, **options)
    losses = torch.cat([_losses(block, rounds, steps, excess) for block in setting.blocks(BLOCK)], dim=1)
    return losses.reshape(torch.as_tensor(steps if rounds is None else rounds).shape + setting.shape[:-1])


def _losses(setting: Setting, rounds: ArrayLike | None, steps: ArrayLike | None, excess: bool) -> Tensor:
    """Horizons by one block of the grid."""
    chain = build_chain(setting)
    _, horizons = _horizons(setting, rounds, steps)
    losses = [loss_of(setting, chain.second_moment(*horizon), excess) for horizon in horizons]
    return torch.stack([torch.atleast_1d(loss.expand(setting.shape[:-1])) for loss in losses])


def loss_of(setting: Setting, second_moment: Tensor, excess: bool) -> Tensor:
    """½ Σ a(E² + V), plus ½ Σ aσ² unless only the excess is wanted."""
    reducible = (setting.a * second_moment).sum(-1) / 2  # no matrix product: BLAS would start threads for every block
    if excess:
        return reducible
    shape = torch.broadcast_shapes(second_moment.shape, setting.sigma2.shape)
    return reducible + (setting.a * setting.sigma2).expand(shape).sum(-1) / 2


def steady_state_variance(
    method: str, a: ArrayLike, sigma2: ArrayLike, lr: ArrayLike, **options: Unpack[Options]
) -> Tensor:
    """Variance that the weights settle at, coordinate by coordinate, at the ends of rounds.

    SGD: γ²A²Σ/(I - (I - γA)²). Lookahead: eq. 7 of its paper. Lookaround: Lookahead's with Σ/d, which for α = 1 is SGD's divided
    by d whatever k is; `published=True` gives eq. 6 of the Lookaround paper instead, whose recursion drops the share
    (1/d)(I - γA)²ᵏ V of the branches' common variance and comes out too small (`figures`, "lookaround-variance", decides by
    simulation).

    Args:
        method, a, sigma2, lr: as in `moments`; with lr below 2/L the mean settles at 0.
        **options: `k`, `alpha`, `branches`, `momentum`, `inner_k`, `inner_alpha`, `published`; see `Options`.

    Returns:
        Float64 tensor of the broadcast shape (at least one axis).

    Raises:
        ValueError: outside 0 < lr < 2(1 + momentum)/L, 0 < alpha ≤ 1, k ≥ 1, branches ≥ 1, or where momentum and averages together
            leave no steady state.

    Example:
        >>> from lookaround.theory import steady_state_variance
        >>> steady_state_variance("lookaround", 1.0, 1.0, 0.01, k=5, branches=3).item()
        0.0016750...
        >>> steady_state_variance("lookaround", 1.0, 1.0, 0.01, k=5, branches=3, published=True).item()
        0.000403...

    Source: Lookahead paper, Proposition 2; Lookaround paper, Proposition 1.
    """
    setting = resolve(method, a, sigma2, lr, **options)
    return build_chain(setting).steady.expand(setting.shape).clone()


def steady_state_loss(
    method: str, a: ArrayLike, sigma2: ArrayLike, lr: ArrayLike, *, excess: bool = False, **options: Unpack[Options]
) -> Tensor:
    """Expected loss that a method settles at: `expected_loss` with mean 0 and `steady_state_variance`.

    Example:
        >>> from lookaround.theory import steady_state_loss
        >>> steady_state_loss("sgd", a=1.0, sigma2=1.0, lr=1.0).item()    # one step lands on c: V = σ²
        1.0

    Source: Lookahead paper, equation 5 with Proposition 2; Lookaround paper, equation 3 with Proposition 1
    (corrected).
    """
    setting = resolve(method, a, sigma2, lr, **options)
    losses = [
        torch.atleast_1d(loss_of(block, build_chain(block).steady, excess).expand(block.shape[:-1]))
        for block in setting.blocks(BLOCK)
    ]
    return torch.cat(losses).reshape(setting.shape[:-1])
