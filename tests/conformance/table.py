"""The wrappers every check of the contract is run on, and small models to run them with."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from lookaround import SAM, Lookahead, Lookaround

Wrap = Callable[[Optimizer, nn.Module], Optimizer]

# Joining this table is the entry ticket: a wrapper is whatever passes every check of this folder.
WRAPPERS: dict[str, Wrap] = {
    "lookahead": lambda inner, model: Lookahead(inner, k=3, alpha=0.5),
    "lookahead, alpha 1": lambda inner, model: Lookahead(inner, k=2, alpha=1.0),
    "lookahead, adaptive": lambda inner, model: Lookahead(inner, k=3, alpha="adaptive"),
    "lookahead, interpolate": lambda inner, model: Lookahead(inner, k=3, alpha=0.5, inner_state="interpolate"),
    "lookahead, reset": lambda inner, model: Lookahead(inner, k=3, alpha=0.8, inner_state="reset"),
    "lookaround": lambda inner, model: Lookaround(inner, branches=3, k=2),
    "lookaround, model": lambda inner, model: Lookaround(inner, branches=3, k=2, model=model),
    "lookaround, alpha": lambda inner, model: Lookaround(inner, branches=2, k=2, alpha=0.6, model=model),
    "lookaround, interpolate": lambda i, model: Lookaround(i, 2, k=2, alpha=0.6, inner_state="interpolate"),
    "lookaround, period": lambda inner, model: Lookaround(inner, branches=2, k=lambda t: max(1, 3 - t)),
    "lookaround, overlap": lambda i, model: Lookaround(i, 2, k=3, alpha=0.6, overlap=2, model=model),
    "sam": lambda inner, model: SAM(inner, rho=0.05),
    "asam": lambda inner, model: SAM(inner, rho=0.5, adaptive=True),
    "lookahead around sam": lambda inner, model: Lookahead(SAM(inner), k=3),
    "lookaround around sam": lambda inner, model: Lookaround(SAM(inner), branches=2, k=2, model=model),
    "lookaround around lookahead": lambda inner, model: Lookaround(Lookahead(inner, k=3), branches=2, k=2),
    "alpha lookaround around lookahead": lambda i, model: Lookaround(Lookahead(i, k=3), 2, k=2, alpha=0.5, model=model),
}


def momentum(params: list[nn.Parameter]) -> Optimizer:
    return SGD(params, lr=0.05, momentum=0.9, weight_decay=0.01)


class Net(nn.Module):
    """A network with batch-norm statistics, for vectors of four."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.body(inputs)


def batch(step: int, branch: int = 0) -> Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(100 * step + branch))


def closure_for(optimizer: Optimizer, model: nn.Module, step: int) -> Callable[[], Tensor]:
    """The closure of a training step on a batch of its own for each step and branch."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(batch(step, getattr(optimizer, "branch", 0))).square().mean()
        loss.backward()
        return loss

    return closure


def train(optimizer: Optimizer, model: nn.Module, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        optimizer.step(closure_for(optimizer, model, step))


@dataclass
class Case:
    """A model and a wrapped optimizer for it."""

    model: nn.Module
    optimizer: Optimizer

    def train(self, steps: int, first: int = 0) -> "Case":
        train(self.optimizer, self.model, steps, first)
        return self


def case(name: str, make: Callable[..., Optimizer] = momentum, seed: int = 0) -> Case:
    model = Net(seed)
    return Case(model, WRAPPERS[name](make(list(model.parameters())), model))


def tensors_of(value: object) -> list[object]:
    """Every leaf of nested dictionaries and lists, keys included, in a fixed order: what two states are compared by."""
    if isinstance(value, dict):
        return [leaf for key in sorted(value, key=repr) for leaf in (repr(key), *tensors_of(value[key]))]
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in tensors_of(item)]
    return [value]


def same(first: object, second: object) -> bool:
    """Equal bit for bit, keys, types and dtypes included."""
    ours, theirs = tensors_of(first), tensors_of(second)
    return len(ours) == len(theirs) and all(map(_same_leaf, ours, theirs))


def _same_leaf(first: object, second: object) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    return type(first) is type(second) and (first is second or first == second)
