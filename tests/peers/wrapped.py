"""A pytest plugin for the optimizer tests of timm and pytorch_optimizer: each optimizer that their factory builds is wrapped in ours.

``LOOKAROUND_WRAP`` names how. Three of the ways have to be the inner optimizer bit for bit, so whatever holds of that has to hold of them:
``lookahead, alpha 1``, ``lookaround, one branch``, and ``lookaround, passes``, in which a step is a pass over three branches with the same
gradients in a round that does not end. ``lookahead`` itself, with the paper's k = 5 and alpha = 0.5, has to converge as well; it cannot be
exact. `run.py` runs the tests with each.
"""

import importlib
import os
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

import lookaround


class _Forwarding:
    """Answers for the inner optimizer what the wrapper does not have: these tests ask for their optimizers' own attributes."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)


class Lookahead(_Forwarding, lookaround.Lookahead):
    """Lookahead, in a module where a pickle finds it."""


class Lookaround(_Forwarding, lookaround.Lookaround):
    """Lookaround, in a module where a pickle finds it."""


class Passes(Lookaround):
    """A step is a pass over the branches, each with the gradients, and the closure, of the step."""

    def step(self, closure: Callable[[], Any] | None = None, **options: Any) -> Any:
        params = [p for group in self.param_groups for p in group["params"]]
        gradients = [None if p.grad is None else p.grad.clone() for p in params]
        loss = None
        for _ in self.around():
            _give(params, gradients)
            loss = super().step(closure, **options)
        return loss


def _give(params: list[Tensor], gradients: list[Tensor | None]) -> None:
    """Some inner optimizers write into the gradients they are given."""
    for param, gradient in zip(params, gradients, strict=True):
        if gradient is None:
            param.grad = None
        elif param.grad is None or param.grad.is_sparse or gradient.is_sparse:
            param.grad = gradient.clone()
        else:
            param.grad.copy_(gradient)


WAYS: dict[str, Callable[[Optimizer], Optimizer]] = {
    "lookahead, alpha 1": lambda inner: Lookahead(inner, k=5, alpha=1.0),
    "lookaround, one branch": lambda inner: Lookaround(inner, branches=1, k=5),
    "lookaround, passes": lambda inner: Passes(inner, branches=3, k=1_000_000),
    "lookahead": lambda inner: Lookahead(inner, k=5, alpha=0.5),
}
# Where their tests look the factory up: patched before any of their test files is imported.
FACTORIES = {"timm": ("timm.optim", "create_optimizer_v2"), "pytorch_optimizer": ("tests.utils", "build_optimizer")}


def _install(library: str, way: str) -> None:
    module, name = FACTORIES[library]
    build = getattr(importlib.import_module(module), name)

    def wrapping(*args: Any, **kwargs: Any) -> Optimizer:
        return WAYS[way](build(*args, **kwargs))

    setattr(importlib.import_module(module), name, wrapping)


if "LOOKAROUND_WRAP" in os.environ:
    _install(os.environ["LOOKAROUND_PEER"], os.environ["LOOKAROUND_WRAP"])
