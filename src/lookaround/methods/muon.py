"""Muon for whole networks: its matrices by orthogonalized momentum, everything else by AdamW."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Coefficients of the quintic iteration that drives singular values towards 1 fastest (Jordan et al. 2024).
_QUINTIC = (3.4445, -4.775, 2.0315)


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) on parameters of two and more dimensions, the latter as matrices of their rows; AdamW on the rest.

    `torch.optim.Muon` takes matrices only, so a network with biases or convolutions needs two optimizers; this is one, with one
    learning rate: a matrix's update is scaled to the size that AdamW's has (0.2 √max(rows, columns), Liu et al. 2025).

    Args:
        params: as any torch optimizer takes them.
        lr: learning rate of all.
        weight_decay: decoupled, of all.
        momentum: of the matrices.
        nesterov: orthogonalize the gradient ahead of the momentum.
        ns_steps: Newton-Schulz iterations.
        betas: of AdamW.
        eps: of AdamW.

    Raises:
        ValueError: for a number outside its range.

    Example:
        >>> model = torch.nn.Linear(2, 2)
        >>> optimizer = Muon(model.parameters(), lr=0.1)
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ) -> None:
        for name, value in (("lr", lr), ("weight_decay", weight_decay), ("eps", eps), ("ns_steps", ns_steps)):
            if not value >= 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        if len(betas) != 2 or not all(0 <= part < 1 for part in (momentum, *betas)):
            raise ValueError(f"momentum and two betas must lie in [0, 1), got {momentum} and {betas}")
        numbers = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "eps": eps}
        super().__init__(params, {**numbers, "nesterov": nesterov, "ns_steps": ns_steps, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    update = self._matrix if parameter.ndim >= 2 else self._adam
                    parameter.sub_(update(parameter, parameter.grad, self.state[parameter], group))
        return loss

    def _matrix(self, parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        ahead = gradient.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer
        matrix = ahead.reshape(len(ahead), -1)
        scale = 0.2 * max(matrix.shape) ** 0.5
        update: Tensor = orthogonalized(matrix, group["ns_steps"]).view_as(parameter)
        return update * float(group["lr"] * scale)

    def _adam(self, parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        if not state:
            zeros = torch.zeros_like(parameter)
            state.update(step=torch.tensor(0.0), exp_avg=zeros, exp_avg_sq=zeros.clone())
        state["step"] += 1
        beta, beta_square = group["betas"]
        mean = state["exp_avg"].lerp_(gradient, 1 - beta)
        square = state["exp_avg_sq"].lerp_(gradient.square(), 1 - beta_square)
        count = state["step"].item()
        root = (square / (1 - beta_square**count)).sqrt_().add_(group["eps"])
        update: Tensor = mean / root
        return update * float(group["lr"] / (1 - beta**count))


def orthogonalized(matrix: Tensor, steps: int) -> Tensor:
    """Nearly U Vᵀ of a matrix U S Vᵀ, by Newton-Schulz in bfloat16: singular values end between about 0.7 and 1.2."""
    first, second, third = _QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    iterate = (matrix.T if tall else matrix).bfloat16()
    iterate = iterate / iterate.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = iterate @ iterate.T
        square = torch.addmm(gram, gram, gram, beta=second, alpha=third)
        iterate = torch.addmm(iterate, square, iterate, beta=first)
    result: Tensor = iterate.T if tall else iterate
    return result.to(matrix.dtype)
