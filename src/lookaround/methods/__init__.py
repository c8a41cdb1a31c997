"""The rows of a comparison: a name and typed settings, and what trains by them."""

from lookaround.methods.base import Cost, Method, Setup
from lookaround.methods.optimizers import make_optimizer
from lookaround.methods.registry import METHODS, build, find, spreads
from lookaround.methods.schedule import Schedule
from lookaround.methods.spec import Resolved, Spec

__all__ = [
    "METHODS",
    "Cost",
    "Method",
    "Resolved",
    "Schedule",
    "Setup",
    "Spec",
    "build",
    "find",
    "make_optimizer",
    "spreads",
]
