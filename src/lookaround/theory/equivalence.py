r"""Lookaround at rate η with d branches is, to first order, SGD at rate η/d: the same progress and the same noise per sample.

A pass is one step of every branch, d minibatches; SGD takes d steps over them. With x = ηa for one curvature a, momentum 0, noise
variance σ², α = 1, and q = 1 - x, p = 1 - x/d:

**Progress.** A round of k passes multiplies Lookaround's mean by qᵏ and SGD's by pᵏᵈ. Per pass, ln q = -x - x²/2 - … and
d ln p = -x - x²/(2d) - …, so both contract by 1 - x, and the gap is x²(1 - 1/d)/2: of second order.

**Noise.** A round adds to the variance xσ²/(2 - x) · (1 - q²ᵏ)/d in Lookaround and (x/d)σ²/(2 - x/d) · (1 - p²ᵏᵈ) in SGD: both are
k x²σ²/d (1 + O(x)).

**Fixed point.** Where both have settled, exactly, whatever k is,

.. math:: \frac{V^*_{Lookaround}(\eta, d)}{V^*_{SGD}(\eta/d)} = \frac{2(1 + \beta) - x/d}{2(1 + \beta) - x} \ge 1,

with momentum β kept across averages (β = 0: (2 - x/d)/(2 - x)): the excess is x(1 - 1/d)/(2(1 + β) - x) of SGD's, of first order in x,
and SGD at a d-th of the rate is never worse. The proof for momentum: both are linear with independent noise, so the mean of d branches
is one chain with noise σ²/d, whose variance is V(η)/d with torch's V(η) = x σ² (1 + β)/((1 - β)(2(1 + β) - x)).

What it means: a comparison of Lookaround and SGD at one common rate compares two effective rates. Whether branches gain anything
of their own shows against SGD at η/d, and can only come from what a quadratic leaves out: curvature that changes (there k begins to
matter), and augmentations that differ.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from lookaround.theory.arrays import ArrayLike, as_float64, whole
from lookaround.theory.monte_carlo import averaged, build_optimizer, descend
from lookaround.theory.noisy_quadratic import expected_loss
from lookaround.theory.settings import Setting, resolve


class AtEqualSamples(NamedTuple):
    """Expected excess losses of the two at the same numbers of samples.

    Source: the module's derivation.
    """

    lookaround: Tensor
    sgd: Tensor


def at_equal_samples(
    a: ArrayLike,
    sigma2: ArrayLike,
    lr: ArrayLike,
    passes: ArrayLike,
    *,
    branches: ArrayLike = 3,
    k: ArrayLike = 5,
    momentum: ArrayLike = 0.0,
    mean0: ArrayLike = 1.0,
) -> AtEqualSamples:
    """Excess loss of Lookaround at rate ``lr`` and of SGD at ``lr / branches``, after the same samples, exact.

    Args:
        a, sigma2: curvatures and noise variances, as in `moments`; the last axis counts coordinates.
        lr: Lookaround's rate η.
        passes: horizon or one-dimensional array of horizons; in a pass each branch takes a step and SGD takes ``branches``.
        branches, k, momentum, mean0: as in `moments`; ``branches`` is one number.

    Returns:
        Two float64 tensors of the shape of `expected_loss`.

    Raises:
        ValueError: a setting outside its range.

    Example:
        >>> from lookaround.theory import at_equal_samples
        >>> both = at_equal_samples(a=1.0, sigma2=1.0, lr=0.01, passes=300)
        >>> round((both.lookaround / both.sgd).item(), 3)
        0.989

    Source: the module's derivation; moments as in the Lookaround paper, Lemma 1, with its variance corrected.
    """
    count = whole("branches", branches, 1)
    horizons, rate = whole("passes", passes, 0), as_float64("lr", lr)
    lookaround = expected_loss(
        "lookaround", a, sigma2, rate, steps=horizons, excess=True, branches=count, k=k, momentum=momentum, mean0=mean0
    )
    sgd = expected_loss(
        "sgd", a, sigma2, rate / count, steps=horizons * count, excess=True, momentum=momentum, mean0=mean0
    )
    return AtEqualSamples(lookaround, sgd)


def fixed_point_ratio(a: ArrayLike, lr: ArrayLike, *, branches: ArrayLike = 3, momentum: ArrayLike = 0.0) -> Tensor:
    """V* of Lookaround at rate ``lr`` over V* of SGD at ``lr / branches``: (2(1 + β) - x/d)/(2(1 + β) - x) with x = lr·a.

    Args:
        a: curvature, above 0.
        lr: Lookaround's rate η, below 2(1 + momentum)/a.
        branches: d, at least 1.
        momentum: β of both, kept across averages.

    Returns:
        A float64 tensor of the broadcast shape, at least 1 everywhere.

    Raises:
        ValueError: a setting outside its range.

    Example:
        >>> from lookaround.theory import fixed_point_ratio
        >>> fixed_point_ratio(1.0, 0.5, branches=2).item()
        1.1666666666666667

    Source: the module's derivation.
    """
    setting = resolve("lookaround", a, 1.0, lr, branches=branches, momentum=momentum)
    x, limit = setting.lr * setting.a, 2 * (1 + setting.momentum)
    return (limit - x / setting.noise_divisor) / (limit - x)


def measured_ratio(
    gradient: Callable[[Tensor], Tensor],
    loss: Callable[[Tensor], Tensor],
    lr: float,
    *,
    branches: int = 3,
    k: int = 5,
    momentum: float = 0.0,
    passes: int = 300,
    settled: int = 100,
    chains: int = 4000,
    seed: int = 0,
) -> float:
    """Mean excess loss where both have settled, of `Lookaround` at ``lr`` over SGD at ``lr / branches``, by running them.

    On one coordinate, from its minimum at 0, with standard normal noise added to every gradient; for losses on which
    nothing is exact. The average over rounds that end after the first ``settled`` of ``passes`` is taken.

    Args:
        gradient, loss: entry by entry, of a loss whose minimum is 0 at 0.
        lr, branches, k, momentum: of Lookaround; SGD takes ``branches`` steps a pass at ``lr / branches``.
        passes, settled: how many passes are run, and how many of them are left out of the mean.
        chains: independent runs of each.
        seed: of the noise.

    Raises:
        ValueError: no round ends after the first ``settled`` passes.

    Example:
        >>> from lookaround.theory import fixed_point_ratio, measured_ratio
        >>> ratio = measured_ratio(lambda x: x, lambda x: x * x / 2, 0.5, chains=500)
        >>> abs(ratio - fixed_point_ratio(1.0, 0.5).item()) < 0.05
        True

    Source: errata of the Lookaround paper; the module's derivation.
    """
    if passes // k <= settled // k:
        raise ValueError(f"no round of k = {k} ends after {settled} of {passes} passes: give more passes")
    settle = partial(_settled_loss, chains=chains, seed=seed, gradient=gradient, loss=loss)
    lookaround = resolve("lookaround", 1.0, 1.0, lr, branches=branches, k=k, momentum=momentum)
    sgd = resolve("sgd", 1.0, 1.0, lr / branches, momentum=momentum)
    return settle(lookaround, passes, settled, k) / settle(sgd, passes * branches, settled * branches, branches)


def _settled_loss(
    setting: Setting,
    steps: int,
    settled: int,
    every: int,
    *,
    chains: int,
    seed: int,
    gradient: Callable[[Tensor], Tensor],
    loss: Callable[[Tensor], Tensor],
) -> float:
    """Mean loss of the averaged weights after every so many steps of each branch, once settled."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.zeros(chains, dtype=torch.float64, requires_grad=True)
    optimizer = build_optimizer(setting, [weights])

    def noisy(at: Tensor) -> Tensor:
        return gradient(at) + torch.randn(at.shape, generator=generator, dtype=at.dtype)

    losses = []
    for step in range(1, steps + 1):
        descend(optimizer, weights, noisy)
        if step > settled and step % every == 0:
            with averaged(optimizer):
                losses.append(loss(weights.detach()).mean())
    return float(torch.stack(losses).mean())
