"""What becomes of the inner optimizer's momentum at an average step: maintained, interpolated or reset."""

import warnings
from typing import Any, Literal, get_args

from torch import Tensor
from torch.optim import LBFGS, Optimizer

Mode = Literal["maintain", "interpolate", "reset"]

# The names under which optimizers keep a first moment: SGD, RMSprop, Muon and Lion's kin; the Adam family.
_NAMES = ("momentum_buffer", "exp_avg", "momentum")
# L-BFGS keeps its direction and its memory of curvature in the first parameter's entry.
_HISTORY = "old_dirs"


def check_mode(mode: str, innermost: Optimizer) -> Mode:
    """The mode, checked against the names there are and against what the innermost optimizer can do."""
    if mode not in get_args(Mode):
        raise ValueError(f"inner_state={mode!r} is not known: choose one of {', '.join(map(repr, get_args(Mode)))}")
    if mode == "interpolate" and isinstance(innermost, LBFGS):
        raise ValueError(
            "inner_state='interpolate' asks for a momentum to interpolate, LBFGS has none: use 'maintain' or 'reset'"
        )
    return mode  # type: ignore[return-value]


def moments(entries: dict[Tensor, dict[str, Any]]) -> dict[str, dict[Tensor, Tensor]]:
    """The momentum tensors in the entries of parameters, by name and parameter."""
    found: dict[str, dict[Tensor, Tensor]] = {}
    for param, entry in entries.items():
        for name in _NAMES:
            if isinstance(entry.get(name), Tensor):
                found.setdefault(name, {})[param] = entry[name]
    return found


def reset(entries: dict[Tensor, dict[str, Any]]) -> bool:
    """Set momentum to zero, in place, and forget L-BFGS's history; tell whether there was any."""
    buffers = [t for of in moments(entries).values() for t in of.values()]
    histories = [entry for entry in entries.values() if _HISTORY in entry]
    for tensor in buffers:
        tensor.zero_()
    for entry in histories:
        entry.clear()
    return bool(buffers or histories)


def warn_without_momentum(mode: Mode, inner: Optimizer) -> None:
    """Say that a mode has nothing to act on."""
    warnings.warn(
        f"inner_state={mode!r} is ignored: {type(inner).__name__} keeps no momentum", UserWarning, stacklevel=2
    )
