"""What the public functions of this package accept, turned into float64 tensors and checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

ArrayLike = float | Sequence[Any] | Tensor | Any


def as_float64(name: str, value: ArrayLike) -> Tensor:
    """`value` as a detached float64 tensor on its own device; errors carry the name of the argument."""
    try:
        # Bare Python numbers would pass through float32 without the dtype; arrays keep theirs, so that complex ones are seen.
        tensor = torch.as_tensor(value, dtype=None if hasattr(value, "dtype") else torch.float64).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        kinds = "a number, a sequence, a tensor or a numpy array of real numbers"
        raise TypeError(f"{name} must be {kinds}; got {value!r}") from error
    if tensor.is_complex():
        raise TypeError(f"{name} must be real; got {tensor.dtype}")
    tensor = tensor.to(torch.float64)
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"{name} must be finite; got {offender(tensor, ~tensor.isfinite())}")
    return tensor


def offender(tensor: Tensor, where: Tensor) -> float:
    """The first entry of `tensor` that a condition marks, for error messages."""
    return float(tensor[where].flatten()[0])


def positive(name: str, value: ArrayLike) -> Tensor:
    """Float64 tensor with every entry above 0."""
    tensor = as_float64(name, value)
    if bool((tensor <= 0).any()):
        raise ValueError(f"{name} must be greater than 0; got {offender(tensor, tensor <= 0)}")
    return tensor


def spectrum(name: str, value: ArrayLike) -> Tensor:
    """Float64 tensor of curvatures above 0, of which there is at least one; its last axis counts them."""
    tensor: Tensor = torch.atleast_1d(positive(name, value))
    if not tensor.numel():
        raise ValueError(f"{name} must hold at least one curvature; got a tensor of shape {tuple(tensor.shape)}")
    return tensor


def non_negative(name: str, value: ArrayLike) -> Tensor:
    """Float64 tensor with no entry below 0."""
    tensor = as_float64(name, value)
    if bool((tensor < 0).any()):
        raise ValueError(f"{name} must not be negative; got {offender(tensor, tensor < 0)}")
    return tensor


def unit_interval(name: str, value: ArrayLike) -> Tensor:
    """Float64 tensor with every entry in (0, 1], the range of a weight of the fast weights."""
    tensor = as_float64(name, value)
    outside = (tensor <= 0) | (tensor > 1)
    if bool(outside.any()):
        raise ValueError(f"{name} must lie in (0, 1]; got {offender(tensor, outside)}")
    return tensor


def momentum_factor(value: ArrayLike) -> Tensor:
    """Float64 tensor of momentum factors β in [0, 1)."""
    tensor = as_float64("momentum", value)
    outside = (tensor < 0) | (tensor >= 1)
    if bool(outside.any()):
        raise ValueError(f"momentum must lie in [0, 1); got {offender(tensor, outside)}")
    return tensor


def whole(name: str, value: ArrayLike, least: int) -> Tensor:
    """Float64 tensor of whole numbers of at least `least` (powers of tensors want floating exponents)."""
    tensor = as_float64(name, value)
    wrong = (tensor < least) | (tensor != tensor.round())
    if bool(wrong.any()):
        raise ValueError(f"{name} must be a whole number of at least {least}; got {offender(tensor, wrong)}")
    return tensor


def single(name: str, tensor: Tensor) -> int:
    """The one whole number in `tensor`, where the calculation needs one number and not an array."""
    if tensor.numel() != 1:
        raise ValueError(f"{name} must be one number here, not an array of shape {tuple(tensor.shape)}")
    return int(tensor.item())


def common_shape(**tensors: Tensor) -> torch.Size:
    """The shape the arguments broadcast to, or one clear error."""
    try:
        return torch.Size(torch.broadcast_shapes(*(tensor.shape for tensor in tensors.values())))
    except RuntimeError as error:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"the arguments do not broadcast together: {shapes}") from error
