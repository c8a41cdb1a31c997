"""Exact answers on quadratics: moments and losses under noise, rates without it, and what they advise for a measured model."""

from lookaround.theory.advice import (
    CANDIDATES,
    Candidate,
    Comparison,
    Prediction,
    advise,
    compare,
    format_advice,
    predict,
)
from lookaround.theory.convergence import OptimalRate, convergence_rate, lower_bound, optimal_rate, transition_matrix
from lookaround.theory.curvature import Eigenpairs, GradientNoise, gradient_noise, hessian_product, top_eigenvalues
from lookaround.theory.equivalence import AtEqualSamples, at_equal_samples, fixed_point_ratio, measured_ratio
from lookaround.theory.monte_carlo import Estimate, MonteCarlo, measured_contraction, simulate
from lookaround.theory.noisy_quadratic import Moments, expected_loss, moments, steady_state_loss, steady_state_variance
from lookaround.theory.settling import rounds_to_fixed_point
from lookaround.theory.spectra import chebyshev_spectrum, power_law_spectrum

__all__ = [
    "CANDIDATES",
    "AtEqualSamples",
    "Candidate",
    "Comparison",
    "Eigenpairs",
    "Estimate",
    "GradientNoise",
    "Moments",
    "MonteCarlo",
    "OptimalRate",
    "Prediction",
    "advise",
    "at_equal_samples",
    "chebyshev_spectrum",
    "compare",
    "convergence_rate",
    "expected_loss",
    "fixed_point_ratio",
    "format_advice",
    "gradient_noise",
    "hessian_product",
    "lower_bound",
    "measured_contraction",
    "measured_ratio",
    "moments",
    "optimal_rate",
    "power_law_spectrum",
    "predict",
    "rounds_to_fixed_point",
    "simulate",
    "steady_state_loss",
    "steady_state_variance",
    "top_eigenvalues",
    "transition_matrix",
]
