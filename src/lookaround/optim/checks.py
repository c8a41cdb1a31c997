"""What a user may pass: each check returns the value, or raises one message that names it and says what is allowed."""

import math
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from operator import index
from typing import Any

from torch import nn
from torch.optim import Optimizer

Period = int | Callable[[int], int]
Alpha = float | Callable[[int], float]


class NotFiniteError(ValueError):
    """Weights or a loss that are infinite or NaN where only finite ones can be gone on with.

    Attributes:
        what: is not finite, in a few words.
    """

    def __init__(self, message: str, what: str) -> None:
        super().__init__(message)
        self.what = what


def check_count(what: str, value: Any, *, least: int = 1) -> int:
    """An integer of at least ``least``, of Python's or numpy's type."""
    if type(value) is int and value >= least:  # the common case, asked at every average
        return value
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{what} has to be an integer, got {value!r}")
    count = int(index(value))
    if count < least:
        raise ValueError(f"{what} has to be at least {least}, got {count}")
    return count


def check_alpha(value: Any, what: str = "alpha") -> float:
    """A weight in [0, 1]."""
    if type(value) is float and 0.0 <= value <= 1.0:  # the common case, asked at every average
        return value
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{what} has to be a number between 0 and 1, got {value!r}")
    weight = float(value)
    if not 0 <= weight <= 1:
        raise ValueError(f"{what} has to be between 0 and 1, got {value}")
    return weight


def step_arguments(
    closure: Callable[[], Any] | None = None, **options: Any
) -> tuple[Callable[[], Any] | None, dict[str, Any]]:
    """The closure and the further arguments of a step, which hooks may have changed; TypeError for any others."""
    return closure, options


def check_rho(value: Any) -> float:
    """A radius: finite and not negative."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"rho has to be a number, got {value!r}")
    radius = float(value)
    if not (radius >= 0 and math.isfinite(radius)):
        raise ValueError(f"rho has to be finite and at least 0, got {value}")
    return radius


def evaluate_k(period: Period, round_number: int) -> int:
    """A synchronization period, which may depend on the round, at one round."""
    return check_count(f"k({round_number})", period(round_number)) if callable(period) else check_count("k", period)


def evaluate_alpha(alpha: Alpha, round_number: int) -> float:
    """The weight of the fast weights, which may depend on the round, at one round."""
    return check_alpha(alpha(round_number), f"alpha({round_number})") if callable(alpha) else check_alpha(alpha)


def moves_nothing(groups: list[dict[str, Any]]) -> bool:
    """Whether a step now could move no parameter: no learning rate and no gradient. `torch.distributed.checkpoint` makes such a step
    to have an optimizer create its state."""
    if not all("lr" in group and group["lr"] == 0 for group in groups):
        return False
    gradients = [param.grad for group in groups for param in group["params"] if param.grad is not None]
    return all(not gradient.count_nonzero() for gradient in gradients)


def check_nesting(inside: Sequence[Optimizer]) -> None:
    """Branches are the outermost loop: a wrapper outside them would see one trajectory where there are d."""
    for wrapped in inside:
        if getattr(wrapped, "branches", 1) > 1 or getattr(wrapped, "overlap", 0):
            raise ValueError(
                f"nothing that averages can be wrapped around the branches of {type(wrapped).__name__}: "
                f"wrap {type(wrapped).__name__} around it instead, or set its own alpha"
            )


# The class of each wrapper there is, by what stands before its settings in the groups.
WRAPPERS: dict[str, str] = {}


def check_wrappers(saved: Sequence[dict[str, Any]], groups: Sequence[dict[str, Any]], name: str) -> None:
    """A checkpoint's groups have no settings of a wrapper there is none of here: what it kept would be left in the inner state."""
    for prefix, missing in WRAPPERS.items():
        known = any(key.startswith(prefix) for key in groups[0])
        if not known and any(key.startswith(prefix) for group in saved for key in group):
            raise ValueError(
                f"this is a checkpoint of {missing}, and the optimizer it is loaded into is {name} without {missing}: build the "
                "optimizer that was saved, with the same wrappers around each other"
            )


def check_names_are_free(inner: Optimizer, prefix: str, settings: Iterable[str], name: str) -> None:
    """No other library's wrapper keeps settings of its own in the groups under the names that ours would have."""
    for group in inner.param_groups:
        named = [key for key in group if key.startswith(prefix)]
        if named and not {prefix + key for key in settings} <= set(named):
            raise ValueError(
                f"{type(inner).__name__} keeps {', '.join(named)} in its parameter groups, where {name} would overwrite them: wrap the "
                "optimizer inside it instead"
            )


def check_overlap(overlap: Any, k: int, inner_state: str, inside: Sequence[Optimizer]) -> int:
    """Passes by which an average is taken in later: fewer than a round has, and with nothing that would need to travel besides weights."""
    passes = check_count("overlap", overlap, least=0)
    if passes >= k:
        raise ValueError(
            f"overlap={passes} has to be less than k={k}: an average that sets out at a round's end is taken in before the next one does"
        )
    if passes and inner_state == "interpolate":
        raise ValueError(
            f"inner_state='interpolate' with overlap={passes} is not to be had: the mean of the momentum would be of {passes} steps ago; "
            "use 'maintain' or 'reset', or leave overlap out"
        )
    holding = next((type(wrapped).__name__ for wrapped in inside[:-1] if hasattr(wrapped, "_run")), None)
    if passes and holding:
        raise ValueError(
            f"overlap={passes} around {holding}, which has slow weights of its own, is not to be had: wrap around the inner optimizer, "
            "or leave overlap out"
        )
    return passes


def check_model(model: nn.Module | None, inner: Optimizer) -> None:
    """The module whose buffers go with the weights: one that has a parameter the optimizer trains."""
    if model is None:
        return
    if not isinstance(model, nn.Module):
        raise TypeError(f"model has to be the torch.nn.Module that is trained, got {model!r}")
    trained = {id(param) for group in inner.param_groups for param in group["params"]}
    if trained.isdisjoint(map(id, model.parameters())):
        raise ValueError(
            f"model={type(model).__name__} has none of the optimizer's parameters: pass the module that is trained"
        )
