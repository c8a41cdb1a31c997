"""Curvature and gradient noise of a model where it stands: what the noisy quadratic needs to know of it.

Everything is flat here: a vector has one entry per parameter coordinate, parameters concatenated in the order given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lookaround.theory.arrays import single, whole

Loss = Callable[[], Tensor]


@dataclass(frozen=True)
class Eigenpairs:
    """Largest eigenvalues of a Hessian, descending, their unit vectors in rows, and a bound of each eigenvalue's error.

    Source: Lanczos 1950; the error bound is that of Paige 1976, |β_m s_m|.
    """

    values: Tensor
    vectors: Tensor
    errors: Tensor


@dataclass(frozen=True)
class GradientNoise:
    """Variance of a minibatch gradient: per coordinate, along given directions, and summed over all coordinates.

    Source: Σ of the noisy quadratic, Lookahead paper, equation 4, measured.
    """

    coordinates: Tensor
    along: Tensor

    @property
    def total(self) -> float:
        """Trace of the gradient's covariance, the same in every orthonormal basis."""
        return float(self.coordinates.sum())


def hessian_product(loss: Loss, parameters: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
    """v ↦ Hv for the Hessian of `loss` at the current parameters, by differentiating its gradient once more.

    The graph of one gradient is kept and used by every product, so the loss runs forward once.

    Example:
        >>> import torch
        >>> from lookaround.theory import hessian_product
        >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> product = hessian_product(lambda: x[0] ** 2 * x[1], [x])
        >>> product(torch.tensor([1.0, 0.0]))    # [[2y, 2x], [2x, 0]] [1, 0]
        tensor([4., 2.])

    Source: Pearlmutter 1994, "Fast exact multiplication by the Hessian".
    """
    chosen = list(parameters)
    gradient = flatten(torch.autograd.grad(loss(), chosen, create_graph=True, materialize_grads=True))

    def product(vector: Tensor) -> Tensor:
        if not gradient.requires_grad:  # a loss linear in every parameter
            return torch.zeros_like(vector)
        parts = torch.autograd.grad(gradient, chosen, vector, retain_graph=True, materialize_grads=True)
        return flatten(parts)

    return product


def flatten(tensors: Iterable[Tensor]) -> Tensor:
    """The entries of all tensors in one vector."""
    return torch.cat([tensor.flatten() for tensor in tensors])


def top_eigenvalues(
    loss: Loss, parameters: Sequence[Tensor], count: int = 10, *, iterations: int | None = None, seed: int = 0
) -> Eigenpairs:
    """Largest eigenvalues of the Hessian by Lanczos with full reorthogonalization.

    A run of m iterations costs m Hessian-vector products (each about two gradients) and the memory of m + 1 vectors.

    Args:
        loss: the loss over the data that counts, deterministic: no dropout, no batch statistics.
        parameters: tensors that require gradients.
        count: eigenvalues wanted, at most the number of coordinates; fewer come back if the Hessian has fewer distinct ones.
        iterations: m; default 3·count + 20, at most the number of coordinates.
        seed: of the random start.

    Raises:
        ValueError: count below 1, above iterations or above the number of coordinates; no parameter.

    Example:
        >>> import torch
        >>> from lookaround.theory import top_eigenvalues
        >>> x = torch.ones(3, dtype=torch.float64, requires_grad=True)
        >>> scale = torch.tensor([1.0, 5.0, 3.0], dtype=torch.float64)
        >>> top_eigenvalues(lambda: (scale * x**2).sum() / 2, [x], count=2).values
        tensor([5.0000, 3.0000], dtype=torch.float64)

    Source: Lanczos 1950; on networks, Ghorbani et al. 2019, "An investigation into neural net optimization via
    Hessian eigenvalue density".
    """
    size = sum(parameter.numel() for parameter in parameters)
    wanted = single("count", whole("count", count, 1))
    most = min(size, 3 * wanted + 20 if iterations is None else iterations)
    if wanted > most:
        raise ValueError(
            f"count must be at most the iterations and the coordinates; got {wanted}, with {most} of the fewer"
        )
    start = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    basis, diagonal, off = _lanczos(hessian_product(loss, parameters), start.to(parameters[0]), most)
    between = off[: len(diagonal) - 1]
    matrix = torch.diag(diagonal) + torch.diag(between, 1) + torch.diag(between, -1)
    values, inside = torch.linalg.eigh(matrix)
    values, inside = values.flip(0)[:wanted], inside.flip(1)[:, :wanted]
    return Eigenpairs(values, inside.T.to(basis) @ basis, (off[len(diagonal) - 1] * inside[-1]).abs())


def _lanczos(product: Callable[[Tensor], Tensor], start: Tensor, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """Orthonormal rows q, and the diagonal and off-diagonal of their tridiagonal matrix in float64, on the CPU."""
    basis = torch.empty(iterations, start.numel(), dtype=start.dtype, device=start.device)
    diagonal, off = [], []
    vector = start / start.norm()
    for index in range(iterations):
        basis[index] = vector
        image = product(vector)
        diagonal.append(float(vector @ image))
        for _ in range(2):  # once leaves rounding errors that grow into ghost eigenvalues
            image = image - basis[: index + 1].T @ (basis[: index + 1] @ image)
        off.append(float(image.norm()))
        scale = max(max(map(abs, diagonal)), max(off))
        if off[-1] <= 10 * torch.finfo(start.dtype).eps * scale:  # the space is exhausted
            break
        vector = image / off[-1]
    return basis[: len(diagonal)], torch.tensor(diagonal, dtype=torch.float64), torch.tensor(off, dtype=torch.float64)


def gradient_noise(
    losses: Iterable[Loss], parameters: Sequence[Tensor], directions: Tensor | None = None
) -> GradientNoise:
    """Variance of the gradient over minibatches, unbiased, from a few of them; one gradient is held at a time.

    Args:
        losses: one closure a minibatch, drawn as training draws them; at least two.
        parameters: tensors that require gradients.
        directions: unit vectors in rows, e.g. `Eigenpairs.vectors`; default none.

    Raises:
        ValueError: fewer than two minibatches.

    Example:
        >>> import torch
        >>> from lookaround.theory import gradient_noise
        >>> x = torch.zeros(2, requires_grad=True)
        >>> noise = gradient_noise([lambda c=c: (c * x).sum() for c in (1.0, 3.0)], [x], torch.tensor([[0.6, 0.8]]))
        >>> noise.coordinates.tolist(), round(noise.along.item(), 4)
        ([2.0, 2.0], 3.92)

    Source: the unbiased sample variance; it stands for Σ of the noisy quadratic, Lookahead paper, equation 4.
    """
    chosen, count = list(parameters), 0
    size = sum(parameter.numel() for parameter in chosen)
    rows = torch.zeros(0, size) if directions is None else directions
    running = _Variance(), _Variance()
    for loss in losses:
        gradient = flatten(torch.autograd.grad(loss(), chosen, materialize_grads=True))
        running[0].add(gradient.double())
        running[1].add((rows.to(gradient) @ gradient).double())
        count += 1
    if count < 2:
        raise ValueError(f"gradient noise needs at least two minibatches; got {count}")
    return GradientNoise(running[0].value(), running[1].value())


class _Variance:
    """Welford's running variance: no cancellation between a large mean and a small spread."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.squares = torch.zeros((), dtype=torch.float64)

    def add(self, sample: Tensor) -> None:
        self.count += 1
        before = sample - self.mean
        self.mean = self.mean + before / self.count
        self.squares = self.squares + before * (sample - self.mean)

    def value(self) -> Tensor:
        return self.squares / (self.count - 1)
