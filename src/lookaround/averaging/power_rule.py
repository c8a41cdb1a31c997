"""Power-function averages: an exponential average whose memory grows with the run, and the profile it has of the past."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lookaround.averaging.rules import Rule

WIDEST = 12**-0.5
"""The relative width of γ = 0, the mean of all points."""


@dataclass(frozen=True)
class Power(Rule):
    gamma: float

    def weight(self, n: int, length: int) -> float:
        # 1 - (1 - 1/n)^(γ + 1), written so that a large n keeps its digits.
        return -math.expm1((self.gamma + 1) * math.log1p(-1 / n)) if n > 1 else 1.0

    def coefficients(self, steps: Sequence[float]) -> list[float]:
        shares = [(step / steps[-1]) ** (self.gamma + 1) for step in steps]
        return [share - before for share, before in zip(shares, [0.0, *shares[:-1]], strict=True)]


def power(width: float | None = None, *, gamma: float | None = None) -> Rule:
    """The power-function EMA: after n points the i-th has weight proportional to i^(γ+1) - (i-1)^(γ+1), about i^γ.

    Its memory is always the same share of the run so far, and the initial weights are forgotten by themselves, so it
    needs neither a decay chosen for the length of the run nor a warm-up. Written as a running average, the n-th point
    has weight 1 - (1 - 1/n)^(γ+1). γ = 0 is the mean of all points. From stored averages of two widths
    :func:`~lookaround.averaging.synthesize` makes that of any other one, afterwards.

    Args:
        width: The relative width σ_rel in (0, 12^-0.5 = 0.2887], the standard deviation of the profile as a share of the
            run: 0.05 and 0.10 are the paper's two, from which others are made.
        gamma: The exponent γ ≥ 0 instead.

    Raises:
        ValueError: Not exactly one of them is given, or it is outside its range.

    References: Karras et al. 2024 (arXiv 2312.02696), "Analyzing and Improving the Training Dynamics of Diffusion
    Models", section 3.1 and appendix C; the running form is the polynomial-decay average of Shamir and Zhang 2013.

    >>> from lookaround.averaging import power, snapshot_weights
    >>> power(0.1)
    Power(gamma=6.937...)
    >>> [round(w, 4) for w in snapshot_weights(power(gamma=1), [1, 2, 3, 4])]  # i² - (i - 1)², of 16
    [0.0625, 0.1875, 0.3125, 0.4375]
    """
    if (width is None) == (gamma is None):
        raise ValueError(f"power takes a width or gamma, one of them; got width={width}, gamma={gamma}")
    if width is not None:
        return Power(exponent(width))
    if gamma is None or not 0 <= gamma < math.inf:
        raise ValueError(f"gamma must be finite and not negative, got {gamma}")
    return Power(float(gamma))


def relative_width(gamma: float) -> float:
    """σ_rel = (γ+1)^(1/2) (γ+2)^(-1) (γ+3)^(-1/2), the standard deviation of the profile γ as a share of the run.

    References: Karras et al. 2024, equation 123.

    >>> from lookaround.averaging.power_rule import relative_width
    >>> round(relative_width(6.94), 3), round(relative_width(16.97), 3)
    (0.1, 0.05)
    """
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def exponent(width: float) -> float:
    """The exponent γ ≥ 0 of a relative width: the inverse of :func:`relative_width`, which falls with γ.

    Raises:
        ValueError: ``width`` is outside (0, 12^-0.5].

    References: Karras et al. 2024, algorithm 2, which takes the root of the same cubic.

    >>> from lookaround.averaging.power_rule import exponent
    >>> round(exponent(0.1), 2), round(exponent(12**-0.5), 9)
    (6.94, 0.0)
    """
    if not 0 < width <= WIDEST + 1e-12:
        raise ValueError(
            f"width is the averages' standard deviation as a share of the run, in (0, {WIDEST:.4f}]; got {width}"
        )
    low, high = 0.0, 1 / width
    while high - low > 1e-15 * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if relative_width(middle) > width else (low, middle)
    return low
