"""One description of a run on the noisy quadratic, checked once, from which every exact result follows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from lookaround.theory.arrays import (
    ArrayLike,
    as_float64,
    common_shape,
    momentum_factor,
    non_negative,
    offender,
    positive,
    spectrum,
    unit_interval,
    whole,
)

METHODS = ("sgd", "sgd-large-batch", "lookahead", "lookaround", "lookaround+lookahead")
DEFAULT_ALPHA = {"lookahead": 0.5}


class Options(TypedDict, total=False):
    """Keyword arguments that every exact function takes; each broadcasts with the others."""

    k: ArrayLike  # inner steps in a round; default 5
    alpha: ArrayLike | None  # weight of the fast weights, (0, 1]; default 0.5 for Lookahead, 1 for Lookaround
    branches: ArrayLike  # d; default 3
    momentum: ArrayLike  # β of the inner SGD, [0, 1); default 0
    inner_k: ArrayLike  # "lookaround+lookahead": period of the Lookahead inside; default 5
    inner_alpha: ArrayLike  # "lookaround+lookahead": its α; default 0.5
    mean0: ArrayLike  # moments of the starting point (Gaussian or not: only these two enter); default 1
    var0: ArrayLike  # default 0
    published: bool  # "lookaround": the recursion and fixed point as the paper prints them; default False


@dataclass(frozen=True)
class Setting:
    """Float64 tensors that broadcast together; the last axis of `a` counts coordinates.

    Every method is this one chain. Branches start a round at the same point, see independent noise, and everything they do
    is linear, so the mean over d branches moves like one branch whose noise variance is divided by d. What remains of a
    method is that division, the period k and the weight α of the fast weights.
    """

    method: str
    a: Tensor
    sigma2: Tensor  # as given: the irreducible loss needs it undivided
    noise_divisor: Tensor  # d, or 1 for a method with one branch
    lr: Tensor
    k: Tensor
    alpha: Tensor
    momentum: Tensor
    inner_k: Tensor
    inner_alpha: Tensor
    mean0: Tensor
    var0: Tensor
    published: bool

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The fields that broadcast, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    @property
    def shape(self) -> torch.Size:
        """What the arguments broadcast to, coordinates last."""
        return common_shape(**self.tensors)

    def blocks(self, entries: int) -> Iterator[Setting]:
        """The same settings with the grid flattened to one axis, in pieces of at most so many entries (at least one row)."""
        shape = self.shape
        grid, rows = shape[:-1], max(1, entries // shape[-1])
        flat = {
            name: value.expand(*grid, value.shape[-1]).flatten(end_dim=-2)
            for name, value in self.tensors.items()
            if value.dim() > 1
        }
        for first in range(0, grid.numel(), rows):
            yield self._with({name: value[first : first + rows] for name, value in flat.items()})

    def _with(self, tensors: dict[str, Tensor]) -> Setting:
        return Setting(**{**vars(self), **tensors})

    @property
    def nested(self) -> bool:
        return self.method == "lookaround+lookahead"

    @property
    def averaged_noise(self) -> Tensor:
        """Σ/d, the noise that the mean over the branches sees."""
        return self.sigma2 / self.noise_divisor


def resolve(
    method: str,
    a: ArrayLike,
    sigma2: ArrayLike,
    lr: ArrayLike,
    *,
    k: ArrayLike = 5,
    alpha: ArrayLike | None = None,
    branches: ArrayLike = 3,
    momentum: ArrayLike = 0.0,
    inner_k: ArrayLike = 5,
    inner_alpha: ArrayLike = 0.5,
    mean0: ArrayLike = 1.0,
    var0: ArrayLike = 0.0,
    published: bool = False,
) -> Setting:
    """Check every argument and write the method as a `Setting`; an argument that the method does not have is checked and unused."""
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    given_alpha = unit_interval("alpha", DEFAULT_ALPHA.get(method, 1.0) if alpha is None else alpha)
    given_branches = whole("branches", branches, 1)
    one = torch.ones((), dtype=torch.float64)
    setting = Setting(
        method=method,
        a=spectrum("a", a),
        sigma2=non_negative("sigma2", sigma2),
        noise_divisor=one if method in ("sgd", "lookahead") else given_branches,
        lr=positive("lr", lr),
        k=whole("k", k, 1),
        alpha=one if method in ("sgd", "sgd-large-batch") else given_alpha,
        momentum=momentum_factor(momentum),
        inner_k=whole("inner_k", inner_k, 1),
        inner_alpha=unit_interval("inner_alpha", inner_alpha),
        mean0=as_float64("mean0", mean0),
        var0=non_negative("var0", var0),
        published=published,
    )
    if not setting.shape.numel():
        empty = next(name for name, tensor in setting.tensors.items() if not tensor.numel())
        raise ValueError(f"{empty} is empty; every argument needs at least one entry")
    _check_stable(setting)
    _check_published(setting)
    return setting


def _check_stable(setting: Setting) -> None:
    product, limit = torch.broadcast_tensors(setting.lr * setting.a, 2 * (1 + setting.momentum))
    if bool((product >= limit).any()):
        raise ValueError(
            f"lr must be below 2(1 + momentum)/L, L the largest curvature, or the iterates diverge: "
            f"lr·a reaches {offender(product, product >= limit):.6g} and must stay below {offender(limit, product >= limit):.6g}; "
            f"lower lr"
        )


def _check_published(setting: Setting) -> None:
    if not setting.published:
        return
    if setting.method != "lookaround":
        raise ValueError(f"published=True is the printed formula of 'lookaround' alone; got method {setting.method!r}")
    if bool((setting.alpha != 1).any()) or bool((setting.momentum != 0).any()):
        raise ValueError("published=True has neither alpha nor momentum: leave alpha at 1 and momentum at 0")
