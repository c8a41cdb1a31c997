"""Comparisons of methods on a task at one budget: the plan, training, records, results, table and curves."""

from lookaround.errors import DivergedError, InterruptedRunError, UsageError
from lookaround.experiment.comparison import train
from lookaround.experiment.display import Display, display_for
from lookaround.experiment.plan import Budget, Machine, Plan
from lookaround.experiment.report import Comparison
from lookaround.experiment.results import Result

__all__ = [
    "Budget",
    "Comparison",
    "Display",
    "DivergedError",
    "InterruptedRunError",
    "Machine",
    "Plan",
    "Result",
    "UsageError",
    "display_for",
    "train",
]
