"""The papers' figures on quadratics, computed exactly and drawn; `FIGURES` lists them by name.

Every function takes a folder, writes PNG, SVG and CSV into it and returns their paths. The defaults are the papers' settings.
What the papers leave open is chosen here and can be changed: the Lookahead paper names neither the number of coordinates nor the
condition number nor the starting point of its noisy quadratic; here it is 1,000 coordinates at Chebyshev nodes, the hard spectrum
of Li (2005) that the paper refers to, on [10⁻³, 1], from θ = 1. Losses are drawn without their irreducible part. The spectra of
the convergence figures are the two extreme eigenvalues, which give the papers' curves; `points=50` shows what eigenvalues
between them leave of the gain. Needs matplotlib.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lookaround.theory.equivalence_figure import lookaround_rate
from lookaround.theory.progress_figures import lookahead_3, lookahead_11a, lookahead_11b, lookahead_12
from lookaround.theory.rate_figures import lookahead_4, lookaround_2
from lookaround.theory.variance_figure import lookaround_variance

FIGURES: dict[str, Callable[[Path], list[Path]]] = {
    "lookahead-3": lookahead_3,
    "lookahead-4": lookahead_4,
    "lookahead-11a": lookahead_11a,
    "lookahead-11b": lookahead_11b,
    "lookahead-12": lookahead_12,
    "lookaround-2": lookaround_2,
    "lookaround-rate": lookaround_rate,
    "lookaround-variance": lookaround_variance,
}
