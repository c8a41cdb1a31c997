"""Curvature spectra for the noisy quadratic, largest eigenvalue 1."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lookaround.theory.arrays import positive, single, whole


def power_law_spectrum(dimensions: int, exponent: float = 1.0) -> Tensor:
    """aᵢ = i^(-exponent), i = 1 … dimensions: many flat directions and few sharp ones, as measured on networks.

    With exponent 1 it is the spectrum usual in work on the noisy quadratic model (Zhang et al., 2019, "Which algorithmic choices
    matter at which batch sizes?"), of condition number `dimensions`.

    Example:
        >>> from lookaround.theory import power_law_spectrum
        >>> power_law_spectrum(4).tolist()
        [1.0, 0.5, 0.3333333333333333, 0.25]

    Source: Zhang et al. 2019, "Which algorithmic choices matter at which batch sizes?", section 3.
    """
    count = single("dimensions", whole("dimensions", dimensions, 1))
    return torch.arange(1, count + 1, dtype=torch.float64) ** -float(positive("exponent", exponent))


def chebyshev_spectrum(dimensions: int, condition_number: float) -> Tensor:
    """Chebyshev extreme nodes on [1/κ, 1], the spectrum on which Krylov methods attain their bound.

    Args:
        dimensions: how many, at least 2.
        condition_number: κ, at least 1.

    Raises:
        ValueError: one of them is outside its range.

    Source: Li 2005, "Sharpness in rates of convergence for CG and symmetric Lanczos methods"; Lookahead paper, Figure 3.

    Example:
        >>> from lookaround.theory import chebyshev_spectrum
        >>> chebyshev_spectrum(3, 10.0)
        tensor([1.0000, 0.5500, 0.1000], dtype=torch.float64)
    """
    count = single("dimensions", whole("dimensions", dimensions, 2))
    kappa = float(positive("condition_number", condition_number))
    if kappa < 1:
        raise ValueError(f"condition_number is the largest curvature over the least, at least 1; got {kappa}")
    least = 1 / kappa
    angles = torch.arange(count, dtype=torch.float64) * (math.pi / (count - 1))
    return (1 + least) / 2 + (1 - least) / 2 * angles.cos()
