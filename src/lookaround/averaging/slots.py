"""A model's tensors under the model's own names: wrappers' prefixes undone, tied weights once, buffers sorted by what they are."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from lookaround.averaging.moments import is_distributed
from lookaround.averaging.sharding import refuse_fsdp1
from lookaround.buffers import Policy, buffer_policy
from lookaround.tensors import reshard

# Modules whose ``module`` is the model itself.
_WRAPPERS = (DataParallel, DistributedDataParallel, AveragedModel)
# torch.compile, FSDP1 and activation checkpointing register the module they wrap under names no one else uses.
_INNER_NAMES = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_SHOWN = 5


@dataclass
class Slot:
    """One tensor of a model: where it lives, what it is called, and whether it is averaged or copied.

    Attributes:
        name: The name in the model itself, e.g. ``"conv.weight"``.
        aliases: All own names of the tensor, ``name`` first; more than one where weights are tied.
        wrapped: The same names as the wrapped model spells them, e.g. ``"module._orig_mod.conv.weight"``.
        policy: What an average does with it; ``"leave"`` is for what stays as the model has it.
        places: Where it lives, for all names.
    """

    name: str
    owner: dict[str, Any]
    key: str
    policy: Policy | Literal["leave"]
    aliases: list[str] = field(default_factory=list)
    wrapped: list[str] = field(default_factory=list)
    places: list[tuple[dict[str, Any], str]] = field(default_factory=list)

    @property
    def tensor(self) -> Tensor:
        """The tensor as the model holds it now (``Module.to`` replaces buffers, so it is looked up each time)."""
        tensor = self.owner.get(self.key)
        if not isinstance(tensor, Tensor):
            raise ValueError(
                f"the model no longer has a tensor {self.name!r}; build a new average after changing the model"
            )
        return tensor

    @property
    def is_buffer(self) -> bool:
        """Whether it is a buffer, not a parameter."""
        return not isinstance(self.tensor, nn.Parameter)

    def check_owner(self, holders: Collection[int]) -> None:
        """A module that was replaced still holds its old tensors: they would be averaged, and never be seen in the model.

        Args:
            holders: The identities of what the model's modules keep their parameters and buffers in.

        Raises:
            ValueError: The tensor, or the module that held it, is no longer in the model.
        """
        if id(self.owner) not in holders:
            raise ValueError(
                f"the module that held {self.name!r} has been replaced; build a new average after changing the model"
            )
        _ = self.tensor


def _inner_name(module: nn.Module) -> str | None:
    """The child that ``module`` merely wraps, if it is a wrapper: its name is no part of the model's own names."""
    if isinstance(module, _WRAPPERS):
        return "module"
    return next((name for name in _INNER_NAMES if name in module._modules), None)


def persistent(module: nn.Module) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    """The places of a module's own parameters and persistent buffers, with what is there."""
    for key, parameter in module._parameters.items():
        if parameter is not None:
            yield module._parameters, key, parameter
    if module._buffers and not isinstance(module, AveragedModel):
        for key, buffer in module._buffers.items():
            if buffer is not None and key not in module._non_persistent_buffers_set:
                yield module._buffers, key, buffer


def _walk(module: nn.Module, own: str = "", wrapped: str = "") -> Iterator[tuple[str, str, dict[str, Any], str]]:
    """All tensors with their own and wrapped names, tied ones under each of their names, as ``state_dict`` lists them."""
    for owner, key, _ in persistent(module):
        yield own + key, wrapped + key, owner, key
    inner = _inner_name(module)
    for name, child in module._modules.items():
        if child is not None:
            yield from _walk(child, own if name == inner else f"{own}{name}.", f"{wrapped}{name}.")


def own_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All parameters and persistent buffers under the model's own names, tied ones under each of theirs."""
    return ((name, owner[key]) for name, _, owner, key in _walk(model))


def _default_policy(tensor: Tensor, key: str) -> Policy:
    """Parameters of numbers that have a mean are averaged, and buffers as everywhere in this package."""
    if isinstance(tensor, nn.Parameter):
        return "average" if tensor.is_floating_point() or tensor.is_complex() else "copy"
    return buffer_policy(key, tensor)


def find_slots(model: nn.Module, buffers: Mapping[str, Policy] | None = None) -> list[Slot]:
    """The parameters and persistent buffers of ``model``, each once, with the policy for each.

    Args:
        model: The model, wrapped by DataParallel, DDP, torch.compile or AveragedModel, sharded by FSDP2, or not.
        buffers: Shell patterns of own buffer names with the policy for them, later ones first:
            ``{"*running_*": "copy"}``. What no pattern matches keeps the default.

    Raises:
        ValueError: A pattern matches no buffer, asks to average integers, or names an unknown policy; or the model
            is sharded by FSDP1, or parameters are hidden in its flat ones.
    """
    refuse_fsdp1(model)
    reshard(model)
    found: dict[int, Slot] = {}
    for name, wrapped, owner, key in _walk(model):
        if key == "_flat_param":
            raise ValueError(
                f"{wrapped!r} is a flat parameter without the model's own names; pass use_orig_params=True to FSDP"
            )
        tensor = owner[key]
        slot = found.setdefault(id(tensor), Slot(name, owner, key, _default_policy(tensor, key)))
        slot.aliases.append(name)
        slot.places.append((owner, key))
        slot.wrapped.append(wrapped)
    slots = list(found.values())
    for pattern, policy in (buffers or {}).items():
        _apply(slots, pattern, policy)
    return slots


def _apply(slots: list[Slot], pattern: str, policy: Policy) -> None:
    if policy not in ("average", "copy"):
        raise ValueError(f"a buffer policy is 'average' or 'copy', got {policy!r} for {pattern!r}")
    hits = [s for s in slots if s.is_buffer and any(fnmatchcase(a, pattern) for a in s.aliases)]
    if not hits:
        raise ValueError(
            f"no buffer of the model matches {pattern!r}; use the model's own names, without wrappers' prefixes"
        )
    for slot in hits:
        if policy == "average" and not (slot.tensor.is_floating_point() or slot.tensor.is_complex()):
            raise ValueError(f"{slot.name!r} is of type {slot.tensor.dtype} and cannot be averaged; narrow {pattern!r}")
        slot.policy = policy


def leave_frozen(slots: list[Slot]) -> None:
    """Leave parameters that require no gradient to the model: they do not move, and are its largest part when adapters are trained.

    Raises:
        ValueError: There are parameters and none is trained, so nothing would be averaged.
    """
    parameters = [slot for slot in slots if not slot.is_buffer]
    for slot in parameters:
        if not slot.tensor.requires_grad:
            slot.policy = "leave"
    if parameters and all(slot.policy == "leave" for slot in parameters):
        raise ValueError(
            "no parameter of the model requires a gradient, so there is nothing to average; build the average after choosing what "
            "is trained, or with average_frozen=True"
        )


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """A description of each tensor's shape, for :func:`require_equal`."""
    return {name: str(tuple(t.shape)) for name, t in tensors.items()}


def require_equal(expected: Mapping[str, str], given: Mapping[str, str], what: str, advice: str = "") -> None:
    """Compare two sets of named descriptions; ``advice`` ends the message.

    Raises:
        ValueError: They differ; the message lists what is missing, what is too much and what is different.
    """
    changed = [
        f"{n} is {given[n]} instead of {expected[n]}" for n in expected if n in given and given[n] != expected[n]
    ]
    parts = [
        _shorten("missing: ", [n for n in expected if n not in given]),
        _shorten("unexpected: ", [n for n in given if n not in expected]),
        _shorten("", changed),
    ]
    if any(parts):
        raise ValueError(f"{what} does not match: " + "; ".join(p for p in parts if p) + advice)


def _shorten(head: str, items: list[str]) -> str:
    if not items:
        return ""
    rest = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return head + ", ".join(items[:_SHOWN]) + rest


def own_names(slots: list[Slot], names: Iterable[str]) -> dict[str, str]:
    """The model's own name for each of ``names``, as a ``state_dict`` of the model spells them under whatever wrapper.

    DDP's and DataParallel's ``module.`` is dropped from all names at once, as often as it takes to find the model's own.
    """
    given = {name: _without_inner_names(name) for name in names}
    spelled = {_without_inner_names(w): a for s in slots for w, a in zip(s.wrapped, s.aliases, strict=True)}
    own, stripped = set(spelled.values()), given
    if set(given.values()) == spelled.keys():
        return {name: spelled[value] for name, value in given.items()}
    while set(stripped.values()) != own and stripped and all(n.startswith("module.") for n in stripped.values()):
        stripped = {name: value.removeprefix("module.") for name, value in stripped.items()}
    return stripped if set(stripped.values()) == own else given


def _without_inner_names(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _INNER_NAMES)


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside what merely wraps it as a whole: DataParallel, DDP, AveragedModel, torch.compile; FSDP stays."""
    while (inner := _inner_name(model)) in ("module", "_orig_mod"):
        model = getattr(model, inner)
    return model


def is_main_process() -> bool:
    """Whether this process is the one that writes files: the only one, or rank 0 of an initialised process group."""
    return not is_distributed() or torch.distributed.get_rank() == 0
