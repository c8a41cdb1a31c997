"""SAM: sharpness-aware minimization (Foret et al. 2021), and its scale-invariant form ASAM (Kwon et al. 2021)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from lookaround.optim.checks import check_rho, moves_nothing
from lookaround.optim.wrapper import Closure, Wrapper
from lookaround.tensors import clone, copy_, wide_dtype


class SAM(Wrapper):
    r"""Give the inner optimizer the gradient at the worst point near the weights instead of the one at the weights.

    .. math:: \epsilon = \rho\, \frac{\nabla L(w)}{\lVert \nabla L(w) \rVert_2}, \qquad g = \nabla L(w + \epsilon)

    ``step`` needs a closure that clears the gradients, computes the loss, calls ``backward`` and returns the loss. Whenever the inner
    optimizer asks for a gradient, the closure runs twice: two gradient evaluations a step, a fact that a fair comparison counts.
    The weights are put back from a copy, exactly. Running statistics of batch norm see both evaluations.

    Args:
        inner: any `torch.optim.Optimizer`; it takes the step, at w.
        rho: radius ρ of the neighborhood in the norm of all parameters together, finite and at least 0. 0 is the inner optimizer.
        adaptive: scale the neighborhood by the weights' magnitudes (ASAM): ε = ρ w² ∇L / ‖|w| ∇L‖₂, element by element.

    Both settings live in the groups, as ``sam_rho`` and ``sam_adaptive``. It may be the inner optimizer of `Lookahead` and
    `Lookaround` (Zhang et al. 2023, section 4.3).

    Raises:
        TypeError: ``inner`` is no optimizer or ``rho`` no number.
        ValueError: rho is negative or not finite; ``step`` without a closure.

    Example:
        >>> import torch
        >>> from lookaround import SAM
        >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = SAM(torch.optim.SGD([weight], lr=0.5), rho=0.1)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = weight.square().sum()
        ...     loss.backward()
        ...     return loss
        >>> _ = optimizer.step(closure); weight.data  # 1 - 0.5 * 2 * (1 + 0.1)
        tensor([-0.1000])

    Source: Foret et al. 2021, Algorithm 1 and equation 2 (p = 2); Kwon et al. 2021, equation 5.
    """

    name: ClassVar[str] = "sam"

    def __init__(self, inner: Optimizer, rho: float = 0.05, adaptive: bool = False) -> None:
        super().__init__(inner, {"rho": check_rho(rho), "adaptive": bool(adaptive)})

    def _step(self, closure: Closure | None, options: dict[str, Any]) -> Any:
        if closure is None and moves_nothing(self.param_groups):
            return self.inner.step(**options)
        if closure is None:
            raise ValueError(
                "SAM evaluates the gradient twice and needs step(closure): pass a function that clears the gradients, computes the loss, "
                "calls backward() and returns the loss"
            )
        return self.inner.step(lambda: self._sharp(closure), **options)

    def _sharp(self, closure: Closure) -> Any:
        """Leave the gradient at w + ε in the parameters, and return the loss at w."""
        with torch.enable_grad():
            loss = closure()
        with self._climbed(), torch.enable_grad():
            closure()
        return loss

    @contextmanager
    def _climbed(self) -> Iterator[None]:
        params = [p for p in self.params() if p.grad is not None]
        kept = clone(params)
        self._climb()
        try:
            yield
        finally:
            copy_(params, kept)

    @torch.no_grad()
    def _climb(self) -> None:
        """w ← w + ε. A zero gradient has no direction, so nothing moves."""
        directions = [
            (p, *self._direction(p, group))
            for group in self.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        if not directions:
            return
        norm = get_total_norm([_narrow_norm(scaled) for _, scaled, _, _ in directions])
        for param, _, direction, rho in directions:
            scale = torch.where(norm > 0, rho / norm, 0.0).to(param.device)
            param.add_((direction * scale).to(param.dtype))

    def _direction(self, param: Tensor, group: dict[str, Any]) -> tuple[Tensor, Tensor, float]:
        """What the norm is taken of (|w| ∇L, or ∇L), the direction of ε (w² ∇L, or ∇L), and ρ."""
        gradient = param.grad
        assert gradient is not None
        gradient = gradient.to_dense() if gradient.is_sparse else gradient
        if not group[self._key("adaptive")]:
            return gradient, gradient, group[self._key("rho")]
        size = param.abs()
        return size * gradient, size.square() * gradient, group[self._key("rho")]


def _narrow_norm(tensor: Tensor) -> Tensor:
    """The norm of a 16-bit tensor, taken in float32 where it cannot overflow; a wider tensor itself, for a norm over all."""
    wide = wide_dtype(tensor.dtype)
    return tensor if wide == tensor.dtype else torch.linalg.vector_norm(tensor, dtype=wide)
