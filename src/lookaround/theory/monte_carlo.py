"""The exact results once more, measured: the project's own optimizers run on quadratics, thousands of chains at once.

A chain is one row of a single parameter of shape (chains, coordinates), so that a run of d branches for t steps costs d·t
optimizer steps whatever the number of chains. This is the one module of `theory` that imports `optim`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Unpack

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from lookaround.optim import Lookahead, Lookaround
from lookaround.theory.arrays import ArrayLike, as_float64, single, spectrum, whole
from lookaround.theory.settings import Options, Setting, resolve


@dataclass(frozen=True)
class Estimate:
    """A measured quantity and the half width of its two-sided normal confidence interval.

    Source: the normal approximation of a mean and of the variance of a Gaussian.
    """

    value: Tensor
    half_width: Tensor

    def contains(self, exact: ArrayLike) -> Tensor:
        """Entry by entry: whether the interval covers `exact`."""
        return (as_float64("exact", exact) - self.value).abs() <= self.half_width


@dataclass(frozen=True)
class MonteCarlo:
    """What `simulate` measures: moments coordinate by coordinate, and the loss ½ Σ a(θ² + σ²).

    Source: the moments of the Lookahead paper, section 3.1, measured.
    """

    mean: Estimate
    variance: Estimate
    loss: Estimate


def simulate(
    method: str,
    a: ArrayLike,
    sigma2: ArrayLike,
    lr: float,
    steps: int,
    *,
    chains: int = 4096,
    confidence: float = 0.99,
    seed: int = 0,
    **options: Unpack[Options],
) -> MonteCarlo:
    """Run SGD, `Lookahead` or `Lookaround` themselves on the noisy quadratic and estimate the moments of the averaged weights.

    Takes the settings of `moments`, one number each but for `a`, `sigma2`, `mean0` and `var0`, which may count coordinates. The
    chains start at Gaussian points of mean `mean0` and variance `var0` and stay Gaussian, so the intervals need no
    assumption: mean ± z s/√n, variance s²(1 ± z √(2/(n - 1))).

    Args:
        steps: inner steps of every branch; inside a round the weights are those that `averaged()` gives.
        chains: independent runs, at least 2.
        confidence: of each interval, in (0, 1).
        seed: of the one random generator that draws starting points and noise.

    Raises:
        ValueError: an argument outside its range, an array where one number is needed, or `published=True`, which is a formula.

    Example:
        >>> from lookaround.theory import simulate
        >>> run = simulate("lookaround", a=1.0, sigma2=1.0, lr=0.5, steps=20, k=5, branches=3, chains=2000)
        >>> bool(run.variance.contains(1 / 9))    # V*_SGD/d = γ a σ²/(2 - γ a)/3
        True

    Source: the noisy quadratic of the Lookahead paper, equation 4; that the optimizers themselves are run is ours.
    """
    return trace(method, a, sigma2, lr, [steps], chains=chains, confidence=confidence, seed=seed, **options)[0]


def trace(
    method: str,
    a: ArrayLike,
    sigma2: ArrayLike,
    lr: float,
    steps: Sequence[int],
    *,
    chains: int = 4096,
    confidence: float = 0.99,
    seed: int = 0,
    **options: Unpack[Options],
) -> list[MonteCarlo]:
    """`simulate` read at several horizons of one run, given in increasing order.

    Example:
        >>> from lookaround.theory.monte_carlo import trace
        >>> runs = trace("sgd", a=1.0, sigma2=1.0, lr=1.0, steps=[0, 1], chains=2000)
        >>> runs[0].variance.value.item(), bool(runs[1].variance.contains(1.0))    # one step lands on c
        (0.0, True)
    """
    setting = resolve(method, a, sigma2, lr, **options)
    _check_simulation(setting, steps, chains, confidence)
    generator = torch.Generator().manual_seed(seed)
    shape = (chains, setting.shape[-1])
    start = torch.randn(shape, generator=generator, dtype=torch.float64)
    weights = (setting.mean0 + setting.var0.sqrt() * start).requires_grad_()
    optimizer = build_optimizer(setting, [weights])
    deviation = setting.sigma2.sqrt().expand(shape)
    if method == "sgd-large-batch":
        deviation = deviation / setting.noise_divisor.sqrt()

    def gradient(at: Tensor) -> Tensor:
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        return setting.a * (at - deviation * noise)

    estimates = []
    for passed, horizon in pairwise([0, *steps]):
        for _ in range(horizon - passed):
            descend(optimizer, weights, gradient)
        with averaged(optimizer):
            estimates.append(_estimate(setting, weights.detach(), confidence))
    return estimates


def _check_simulation(setting: Setting, steps: Sequence[int], chains: int, confidence: float) -> None:
    whole("chains", chains, 2)
    whole("steps", steps, 0)
    if list(steps) != sorted(steps):
        raise ValueError(f"steps must be in increasing order; got {list(steps)}")
    if setting.published:
        raise ValueError("published=True is a formula, not a method: there is nothing to simulate")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie strictly between 0 and 1; got {confidence}")
    if len(setting.shape) != 1:
        raise ValueError(f"simulate takes one setting, not a grid; the arguments broadcast to {tuple(setting.shape)}")


def build_optimizer(setting: Setting, parameters: list[Tensor]) -> Optimizer:
    """The real optimizer that a setting describes, around torch's SGD."""
    inner: Optimizer = SGD(parameters, lr=float(setting.lr), momentum=float(setting.momentum))
    k, alpha = single("k", setting.k), float(setting.alpha)
    if setting.method == "lookahead":
        return Lookahead(inner, k=k, alpha=alpha)
    if setting.nested:
        inner = Lookahead(inner, k=single("inner_k", setting.inner_k), alpha=float(setting.inner_alpha))
    if setting.method.startswith("lookaround"):
        return Lookaround(inner, branches=single("branches", setting.noise_divisor), k=k, alpha=alpha)
    return inner


def descend(optimizer: Optimizer, weights: Tensor, gradient: Callable[[Tensor], Tensor]) -> None:
    """One inner step of every branch."""
    branches: Iterable[int] = optimizer.around() if isinstance(optimizer, Lookahead | Lookaround) else range(1)
    for _ in branches:
        weights.grad = gradient(weights.detach())
        optimizer.step()


def averaged(optimizer: Optimizer) -> AbstractContextManager[None]:
    """`averaged()` where the optimizer has one."""
    return optimizer.averaged() if isinstance(optimizer, Lookahead | Lookaround) else nullcontext()


def _estimate(setting: Setting, weights: Tensor, confidence: float) -> MonteCarlo:
    z = math.sqrt(2) * torch.erfinv(torch.tensor(confidence, dtype=torch.float64))
    chains = weights.shape[0]
    variance = weights.var(0)
    losses = (setting.a * (weights**2 + setting.sigma2)).sum(-1) / 2
    return MonteCarlo(
        mean=Estimate(weights.mean(0), z * (variance / chains).sqrt()),
        variance=Estimate(variance, z * variance * math.sqrt(2 / (chains - 1))),
        loss=Estimate(losses.mean(), z * losses.std() / math.sqrt(chains)),
    )


def measured_contraction(
    make_optimizer: Callable[[list[Tensor]], Optimizer],
    eigenvalues: ArrayLike,
    *,
    steps: int = 20_000,
    window: int = 100,
) -> float:
    """Contraction per step of an optimizer on the noise-free quadratic, measured by running it.

    The distance to the optimum oscillates under momentum, so what is fitted, by least squares over the later half of the
    run, is the logarithm of its largest value in every window of steps. A run ends early where float64 would underflow.

    Args:
        make_optimizer: builds the optimizer on a list of parameters, e.g. ``lambda p: Lookahead(SGD(p, lr=1.0, momentum=0.9), k=5)``.
        eigenvalues: spectrum of A, above 0.
        steps: steps to run (of every branch).
        window: steps in a window, a few oscillations.

    Raises:
        ValueError: steps is less than four windows, or the iterates reach the optimum within them.

    Example:
        >>> from torch.optim import SGD
        >>> from lookaround.theory import measured_contraction
        >>> round(measured_contraction(lambda p: SGD(p, lr=1.0), [1.0, 0.1], steps=2000), 6)    # max |1 - γ a|
        0.9

    Source: the rate of the Lookahead paper, section 3.2, measured; the fit is ours.
    """
    if steps < 4 * window:
        raise ValueError(f"steps must be at least four windows of {window}; got {steps}")
    curvatures = spectrum("eigenvalues", eigenvalues)
    weights = torch.ones_like(curvatures).requires_grad_()
    optimizer = make_optimizer([weights])
    peaks: list[float] = []
    while len(peaks) * window < steps and (not peaks or peaks[-1] > SMALLEST):
        peaks.append(_peak(optimizer, weights, curvatures, window))
    if len(peaks) < 4 or peaks[-1] == 0:
        raise ValueError(
            f"the distance shrank below {SMALLEST:g} within {len(peaks)} windows of {window} steps: give a smaller window"
        )
    late = torch.tensor(peaks, dtype=torch.float64)[len(peaks) // 2 :].log()
    time = torch.arange(len(late), dtype=torch.float64)
    slope = torch.linalg.vecdot(late - late.mean(), time - time.mean()) / time.var(correction=0) / len(late)
    return math.exp(float(slope) / window)


SMALLEST = 1e-250  # far enough from the smallest float64 that no product of the run is lost


def _peak(optimizer: Optimizer, weights: Tensor, spectrum: Tensor, window: int) -> float:
    peak = torch.zeros((), dtype=torch.float64)
    for _ in range(window):
        descend(optimizer, weights, lambda at: spectrum * at)
        peak = torch.maximum(peak, weights.detach().abs().amax())
    return float(peak)
