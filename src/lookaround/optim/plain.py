"""The state dict of an optimizer that is not ours: does it fit, and loading it without a change of dtypes.

torch casts floating state to its parameter's dtype when it is loaded, which is right where the model has got another dtype since, and
wrong for float32 momentum of bfloat16 weights. A state dict does not say what dtype the parameter had, so an empty tensor of
it stands in the entry of each parameter whose state has another one.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

Group = dict[str, Any]

# State of torch's own optimizers that has one element for each element of the parameter.
_ELEMENTWISE = {
    *("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf"),
    *("square_avg", "acc_delta", "grad_avg", "sum", "prev", "step_size", "ax"),
}
_OURS = {"slow", "weights", "training", "fisher"}


def check_fits(state_dict: Group, groups: Sequence[Group], innermost: Optimizer) -> None:
    """Raise ValueError where a checkpoint has other groups, or a tensor of another shape, than the parameters ask for.

    Other libraries keep tensors of other shapes under the names that torch's optimizers use, so of theirs only what is compared with
    the state there is now has a shape to be expected.
    """
    saved = [len(group["params"]) for group in state_dict["param_groups"]]
    ours = [len(group["params"]) for group in groups]
    if saved != ours:
        raise ValueError(
            f"the checkpoint has parameter groups of {saved} parameters, this optimizer has {ours}: "
            "build it with the same groups, in the same order, before loading"
        )
    ids = [param for group in state_dict["param_groups"] for param in group["params"]]
    params = [param for group in groups for param in group["params"]]
    known = _ELEMENTWISE | _OURS if type(innermost).__module__.startswith("torch.optim") else _OURS
    for index, (identity, param) in enumerate(zip(ids, params, strict=True)):
        entry = state_dict["state"].get(identity, {})
        for label, value in entry.items() if isinstance(entry, Mapping) else ():
            if isinstance(value, Tensor) and value.shape != param.shape and _has_the_shape(str(label), known):
                raise ValueError(
                    f"the checkpoint's {label!r} of parameter {index} has shape {tuple(value.shape)}, the parameter has "
                    f"{tuple(param.shape)}: load it into an optimizer of the model it was saved from"
                )


def _has_the_shape(label: str, known: set[str]) -> bool:
    """Whether what stands under a label has the parameter's shape; buffers stand in some parameter's entry under names of theirs."""
    return label.rpartition(".")[2] in known and ".buffers." not in label


def marked(state_dict: Group, params: Sequence[Tensor], key: str) -> Group:
    """The state dict with a note of the parameter's dtype in each entry that has state of another one."""
    state = dict(state_dict["state"])
    for index, param in enumerate(params):
        if note := dtype_note(state.get(index, {}), param):
            state[index] = {**state[index], key: note[0]}
    return {**state_dict, "state": state}


def dtype_note(entry: Any, param: Tensor) -> list[Tensor]:
    """An empty tensor of the parameter's dtype, where the entry has state of another floating dtype; nothing elsewhere."""
    if not param.is_floating_point() or not isinstance(entry, Mapping):
        return []
    values = [v for label, v in entry.items() if label != "step" and "." not in str(label)]
    return [param.new_empty(0).detach()] if any(_has_other(value, param.dtype) for value in values) else []


def _has_other(value: Any, dtype: torch.dtype) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point() and value.dtype != dtype
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return any(_has_other(part, dtype) for part in parts)


def load_plain(optimizer: Optimizer, state_dict: Group, key: str) -> None:
    """Have an optimizer load its state dict; state of parameters whose dtype is still the one noted keeps its own."""
    notes = {i: entry[key] for i, entry in state_dict["state"].items() if isinstance(entry, Mapping) and key in entry}
    state = {i: _without(entry, key) if i in notes else entry for i, entry in state_dict["state"].items()}
    state = {i: _copied(entry, optimizer) if isinstance(i, str) else entry for i, entry in state.items()}
    ids = [i for group in state_dict["param_groups"] for i in group["params"]]
    optimizer.load_state_dict({**state_dict, "state": state})
    for i, param in zip(ids, [p for group in optimizer.param_groups for p in group["params"]], strict=True):
        if i in notes and notes[i].dtype == param.dtype and param in optimizer.state:
            optimizer.state[param] = _with_dtypes(optimizer.state[param], state[i])


def _copied(entry: Any, optimizer: Optimizer) -> Any:
    """A copy of what torch would take over as it is. It may be a mapping by parameter, and those are the optimizer's own."""
    return deepcopy(entry, {id(p): p for group in optimizer.param_groups for p in group["params"]})


def _without(entry: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {label: value for label, value in entry.items() if label != key}


def _with_dtypes(loaded: Any, saved: Any) -> Any:
    """What has been loaded, with the dtypes it was saved in."""
    if isinstance(loaded, Tensor) and isinstance(saved, Tensor):
        return loaded if loaded.dtype == saved.dtype else saved.detach().to(loaded.device, copy=True)
    if isinstance(loaded, dict) and isinstance(saved, Mapping):
        loaded.update({label: _with_dtypes(value, saved.get(label)) for label, value in loaded.items()})
        return loaded
    if isinstance(loaded, list | tuple) and isinstance(saved, list | tuple) and len(loaded) == len(saved):
        return type(loaded)(_with_dtypes(a, b) for a, b in zip(loaded, saved, strict=True))
    return loaded
