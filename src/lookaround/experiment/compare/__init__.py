"""Finished experiments put side by side: differences paired by seed, curves over budget and time, tables and pictures."""

from lookaround.experiment.compare.against import Against, against, choose_baseline
from lookaround.experiment.compare.curves import Curve, curve
from lookaround.experiment.compare.figures import curves_figure, differences_figure
from lookaround.experiment.compare.paired import (
    Difference,
    bonferroni,
    holm,
    paired_difference,
    sign_test,
    t_test,
)
from lookaround.experiment.compare.report import Compared, as_text, check_folder, compare, drawn_metrics, write
from lookaround.experiment.compare.rows import Row, merge

__all__ = [
    "Against",
    "Compared",
    "Curve",
    "Difference",
    "Row",
    "against",
    "as_text",
    "bonferroni",
    "check_folder",
    "choose_baseline",
    "compare",
    "curve",
    "curves_figure",
    "differences_figure",
    "drawn_metrics",
    "holm",
    "merge",
    "paired_difference",
    "sign_test",
    "t_test",
    "write",
]
