"""Every method against one of them: paired differences, corrected for how many there are, and what they let one say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from lookaround.errors import UsageError
from lookaround.experiment.compare.paired import Difference, bonferroni, holm, paired_difference
from lookaround.experiment.compare.rows import Row
from lookaround.tasks.base import Metric

Correction = Literal["holm", "bonferroni", "none"]
Verdict = Literal["better", "worse", "not told apart", "equal", "one seed"]
_CORRECTIONS: dict[Correction, Callable[[Sequence[float]], list[float]]] = {
    "holm": holm,
    "bonferroni": bonferroni,
    "none": list,
}


@dataclass(frozen=True)
class Against:
    """One method's difference from the baseline in one metric.

    Attributes:
        row: the method.
        metric: what is compared.
        difference: the method's value minus the baseline's, paired by seed.
        p: of the paired t test, corrected; None where the test says nothing.
        p_sign: of the sign test, corrected.
        verdict: what the corrected t test lets one say at this confidence.
    """

    row: Row
    metric: Metric
    difference: Difference
    p: float | None
    p_sign: float
    verdict: Verdict

    @property
    def better(self) -> int:
        """Seeds on which the method is better than the baseline."""
        return self.difference.below if self.metric.lower else self.difference.above

    @property
    def worse(self) -> int:
        """Seeds on which it is worse."""
        return self.difference.above if self.metric.lower else self.difference.below


def choose_baseline(rows: Sequence[Row], label: str | None) -> Row:
    """The row of this label; without one plain SGD, or else the first row, among those with a finished run.

    Raises:
        UsageError: for a label that no row has, or one whose runs have all diverged.
    """
    finished = [row for row in rows if row.runs]
    if label is None:
        plain = [row for row in finished if row.label.partition(" ")[0].partition(":")[0] == "sgd"]
        if finished:
            return (plain or finished)[0]
        raise UsageError("every run has diverged; there is nothing to compare")
    found = [row for row in rows if row.label == label]
    if not found:
        raise UsageError(
            f"there is no method {label!r} to compare with; choose from {', '.join(r.label for r in rows)}"
        )
    if not found[0].runs:
        raise UsageError(f"every run of {label} has diverged; compare with another method")
    return found[0]


def against(
    rows: Sequence[Row], baseline: Row, metric: Metric, *, confidence: float = 0.95, correction: Correction = "holm"
) -> list[Against]:
    """The difference of every other row that shares a finished seed with the baseline.

    Args:
        rows: of the comparison.
        baseline: one of them.
        metric: what is compared.
        confidence: of the intervals, and 1 - the level of the verdicts.
        correction: for the number of methods compared; the t tests are one family and the sign tests another.
    """
    base = baseline.values(metric)
    others = [row for row in rows if row is not baseline and row.values(metric).keys() & base.keys()]
    found = [paired_difference(row.values(metric), base, confidence) for row in others]
    correct = _CORRECTIONS[correction]
    tested = iter(correct([one.p for one in found if one.p is not None]))
    ps = [None if one.p is None else next(tested) for one in found]
    signs = correct([one.p_sign for one in found])
    return [
        Against(row, metric, one, p, sign, _verdict(one, p, metric, 1 - confidence))
        for row, one, p, sign in zip(others, found, ps, signs, strict=True)
    ]


def _verdict(difference: Difference, p: float | None, metric: Metric, level: float) -> Verdict:
    if difference.ties == len(difference.seeds):
        return "equal"
    if len(difference.seeds) == 1:
        return "one seed"
    if p is None or p > level:
        return "not told apart"
    return "better" if (difference.mean < 0) == metric.lower else "worse"
