"""Lookahead's adaptive α: the slow weights' best step on a local quadratic (Zhang et al. 2019, section 2.1, Proposition 1)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lookaround.tensors import blocks, clone, local

# Decay of the running average of squared gradients where the inner optimizer keeps none: Adam's default for the same quantity.
_DECAY = 0.999


@torch.no_grad()
def optimal_alpha(
    slow: Sequence[Tensor],
    before: Sequence[Tensor],
    fast: Sequence[Tensor],
    gradients: Sequence[Tensor],
    curvature: Sequence[Tensor],
    alpha_low: float = 0.0,
) -> float:
    r"""The α in [alpha_low, 1] that minimizes a quadratic with diagonal curvature Â between θ₀ = ``slow`` and θ_k = ``fast``.

    .. math:: \hat\alpha^* = \mathrm{clip}\Big(1 + \frac{\nabla L(\theta_k)^T (\theta_0 - \theta_k)}
              {(\theta_0 - \theta_k)^T \hat A (\theta_0 - \theta_k)},\ \alpha_{low},\ 1\Big)

    Â cancels out of the first term of the paper's formula, so nothing is divided by it. The last gradient of a round was taken
    one step earlier, at θ_{k-1} = ``before``; on the same quadratic ∇L(θ_k) = ∇L(θ_{k-1}) + Â (θ_k - θ_{k-1}), which costs no further
    gradient and makes α exact where Â is.

    Args:
        slow, before, fast: θ₀, the weights at which ``gradients`` were taken, and θ_k: lists of tensors of the same shapes.
        gradients: ∇L(before).
        curvature: the diagonal of Â, not negative.
        alpha_low: the least value returned.

    Returns:
        α; 1 where θ_k = θ₀ or the curvature along the way is zero, since then nothing argues for less.

    Example:
        >>> import torch
        >>> from lookaround.optim import optimal_alpha
        >>> a, start, end = torch.tensor([2.0]), torch.tensor([1.0]), torch.tensor([-1.0])  # L = x², minimum half-way
        >>> optimal_alpha([start], [end], [end], [a * end], [a])
        0.5
    """
    descent = bend = torch.zeros((), dtype=torch.float64)
    for phi, was, now, gradient, diagonal in blocks(slow, before, fast, gradients, curvature):
        for p, w, n, g, a in zip(phi, was, now, gradient, diagonal, strict=True):
            away = p.double() - n.double()
            here = g.double() + a.double() * (n.double() - w.double())
            descent = descent.to(n.device) + (here * away).sum()
            bend = bend.to(n.device) + (away * a.double() * away).sum()
    numerator, denominator = _everywhere(descent, slow), _everywhere(bend, slow)
    alpha = 1 + numerator / denominator if denominator > 0 else 1.0
    return min(max(alpha, alpha_low), 1.0)


def _everywhere(value: Tensor, tensors: Sequence[Tensor]) -> float:
    """A sum over local shards, added up over the processes of a device mesh."""
    sharded: Any = next((t for t in tensors if hasattr(t, "device_mesh")), None)
    for i, placement in enumerate(sharded.placements if sharded is not None else ()):
        if placement.is_shard():
            torch.distributed.all_reduce(value, group=sharded.device_mesh.get_group(i))
    return float(value)


class Fisher:
    """The diagonal empirical Fisher of each parameter: the inner optimizer's second moment, or an average of our own where it has none.

    Args:
        own: where our averages and their counts stand, by label and parameter.
    """

    def __init__(self, own: dict[str, dict[Tensor, Any]]) -> None:
        self._own = own

    @torch.no_grad()
    def observe(self, params: Sequence[Tensor], state: Mapping[Tensor, Any]) -> None:
        """Bring our running averages of squared gradients up to date."""
        for param in params:
            if param.grad is not None and _moment(state, param) is None:
                self._update(param, param.grad)

    def curvature(self, groups: Sequence[dict[str, Any]], state: Mapping[Tensor, Any]) -> dict[Tensor, Tensor]:
        """The Fisher of each parameter with a gradient."""
        found: dict[Tensor, Tensor] = {}
        for group in groups:
            for param in [p for p in group["params"] if p.grad is not None]:
                moment = _moment(state, param)
                found[param] = self._corrected(param) if moment is None else _corrected(moment, state[param], group)
        return found

    def _update(self, param: Tensor, gradient: Tensor) -> None:
        gradient = gradient.to_dense() if gradient.is_sparse else gradient
        fisher, counts = self._own.setdefault("fisher", {}), self._own.setdefault("fisher_steps", {})
        if param not in fisher:
            fisher[param], counts[param] = torch.zeros_like(gradient), 0
        elif fisher[param].dtype != gradient.dtype or fisher[param].device != gradient.device:
            fisher[param] = fisher[param].to(
                gradient.device, gradient.dtype
            )  # the model has been turned to another one
        counts[param] += 1
        local(fisher[param]).lerp_(local(gradient).square(), 1 - _DECAY)

    def _corrected(self, param: Tensor) -> Tensor:
        """Our running average of squared gradients, its bias corrected."""
        corrected: Tensor = self._own["fisher"][param] / (1 - _DECAY ** self._own["fisher_steps"][param])
        return corrected


def _moment(state: Mapping[Tensor, Any], param: Tensor) -> Tensor | None:
    """The inner optimizer's second moment of a parameter, if it has one for each element."""
    moment = state.get(param, {}).get("exp_avg_sq")
    return moment if isinstance(moment, Tensor) and moment.shape == param.shape else None


def _corrected(moment: Tensor, entry: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
    """Adam's second moment, its bias corrected where its entry says how many steps it has seen."""
    if "step" not in entry or "betas" not in group:
        return moment
    corrected: Tensor = moment / (1 - group["betas"][1] ** float(entry["step"]))
    return corrected


@dataclass
class Adaptive:
    """α by Proposition 1 of the paper, over all parameters that have a gradient.

    Attributes:
        low: the least α.
        before: the weights before the last step of a round; nothing before the others.
    """

    low: float
    before: dict[Tensor, Tensor] = field(default_factory=dict)

    def before_step(self, params: Sequence[Tensor], *, last: bool) -> None:
        """Keep the weights before the last step of a round."""
        if last:
            self.before = dict(zip(params, clone(params), strict=True))

    def after_step(
        self,
        groups: Sequence[dict[str, Any]],
        state: Mapping[Tensor, Any],
        slow: Mapping[Any, Tensor],
        own: dict[str, dict[Tensor, Any]],
    ) -> float | None:
        """Bring the Fisher up to date; after the last step of a round the best α."""
        fisher = Fisher(own)
        fisher.observe([p for group in groups for p in group["params"]], state)
        return self._best(slow, fisher.curvature(groups, state)) if self.before else None

    def _best(self, slow: Mapping[Any, Tensor], curvature: Mapping[Tensor, Tensor]) -> float:
        """The best α, the last gradient carried on to the last weights."""
        params = [p for p in curvature if p in slow]
        gradients = [p.grad for p in params if p.grad is not None]
        dense = [g.to_dense() if g.is_sparse else g for g in gradients]
        before, self.before = [self.before[p] for p in params], {}
        return optimal_alpha([slow[p] for p in params], before, params, dense, [curvature[p] for p in params], self.low)
