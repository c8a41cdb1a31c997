"""Inner optimizers by name, and the settings that each takes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from lookaround.methods.muon import Muon
from lookaround.tasks.base import Task

# How an optimizer computes, not what.
_HOW = ("self", "params", "foreach", "maximize", "differentiable", "capturable", "fused")
# SparseAdam takes sparse gradients alone, which no task's network has.
_LEFT_OUT = ("Optimizer", "SparseAdam", "Muon")


def _all() -> dict[str, type[Optimizer]]:
    found = {name: kind for name, kind in vars(torch.optim).items() if inspect.isclass(kind) and name[0].isupper()}
    usual = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW, "muon": Muon}
    others = {n.lower(): k for n, k in sorted(found.items()) if issubclass(k, Optimizer) and n not in _LEFT_OUT}
    return {**usual, **others}


OPTIMIZERS: dict[str, type[Optimizer]] = _all()
"""sgd, adamw, muon, and torch's others."""


def arguments(name: str) -> dict[str, tuple[Any, Any]]:
    """The settings of an optimizer: of each its type and torch's default.

    Raises:
        ValueError: for an unknown name.

    Example:
        >>> arguments("sgd")["momentum"], list(arguments("adamw"))
        ((<class 'float'>, 0), ['lr', 'betas', 'eps', 'weight_decay', 'amsgrad'])
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {name!r}; choose one of {', '.join(OPTIMIZERS)}")
    parameters = inspect.signature(OPTIMIZERS[name].__init__).parameters.values()
    return {p.name: (_kind(p), p.default) for p in parameters if p.name not in _HOW}


def _kind(parameter: inspect.Parameter) -> Any:
    """The type of an argument as a setting: torch annotates numbers as numbers or tensors."""
    said, default = str(parameter.annotation), parameter.default
    if isinstance(default, bool):
        return bool
    if isinstance(default, tuple):
        return tuple[float | None, ...] if None in default else tuple[float, ...]
    plain: Any = str if "str" in said else int if "int" in said and "float" not in said else float
    return plain | None if default is None else plain


def make_optimizer(name: str, chosen: Mapping[str, Any], task: Task, model: nn.Module) -> Optimizer:
    """The named optimizer over what the task trains of the model; a group's ``lr_scale`` multiplies its learning rate.

    Raises:
        ValueError: for a value that it refuses.
    """
    groups = task.parameters(model)
    for group in groups:
        if "lr_scale" in group:
            group["lr"] = group["lr_scale"] * chosen["lr"]
    try:
        return OPTIMIZERS[name](groups, **chosen)
    except (TypeError, IndexError, AssertionError) as error:  # torch checks the length of tuples by indexing them
        raise ValueError(f"{name} does not take {', '.join(f'{k}={v}' for k, v in chosen.items())}: {error}") from error


def gradients_a_step(name: str, chosen: Mapping[str, Any]) -> int:
    """The most gradients that a step takes: one, but for LBFGS."""
    if name != "lbfgs":
        return 1
    steps = chosen.get("max_iter", 20)
    return int(chosen.get("max_eval") or steps * 5 // 4)
