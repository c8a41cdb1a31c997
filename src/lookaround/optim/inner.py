"""Whole inner optimizers that share their parameters: copied, put in place of one another, set aside.

The user's inner optimizer stays the object that steps, so hooks on it, its groups and whoever holds it are untouched; what belongs to a
branch is what stands in its ``__dict__``. To go from one branch to the next is to exchange that. Nothing is recognised by a name: whatever
an optimizer keeps, and under whatever key, is in there. (`copy.deepcopy` would not do: torch's ``__getstate__`` drops attributes.)
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

Attributes = dict[str, Any]

HOOKS = (
    "_optimizer_step_pre_hooks",
    "_optimizer_step_post_hooks",
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
)

# What is one for all branches: the groups that users and schedulers write to, and what belongs to the object as such.
_COMMON = frozenset((*HOOKS, "param_groups", "defaults", "inner", "step", "_opt_called", "_zero_grad_profile_name"))


def attributes(optimizers: Sequence[Optimizer]) -> list[Attributes]:
    """What of each optimizer belongs to the branch that is in place."""
    return [_own(vars(optimizer)) for optimizer in optimizers]


def _own(held: Attributes) -> Attributes:
    return {key: value for key, value in held.items() if key not in _COMMON}


# The names of an optimizer's attributes, and of those that were put in place with a branch.
Keys = tuple[tuple[str, ...], tuple[str, ...]]


def exchange(optimizers: Sequence[Optimizer], branch: list[Attributes], seen: dict[int, Keys]) -> None:
    """Put a branch in place, and what was there in its stead into ``branch``. To be quick: branches may take turns at every step.

    Args:
        optimizers: whose attributes they are.
        branch: which is to be in place.
        seen: the names of the attributes at the last exchange, by the optimizer's place: where they are the same, nothing is looked for.
    """
    for i, theirs in enumerate(branch):
        held, names = optimizers[i].__dict__, tuple(theirs)
        if seen.get(i) == (tuple(held), names):
            for key, value in theirs.items():
                theirs[key], held[key] = held[key], value
        else:
            _exchange_all(held, theirs)
            # As they will be again, where what comes next has the attributes of what came now.
            seen[i] = tuple(held), names


def _exchange_all(held: Attributes, theirs: Attributes) -> None:
    mine = _own(held)
    for key in mine:
        del held[key]
    held.update(theirs)
    theirs.clear()
    theirs.update(mine)


# What torch puts around the step of every class of optimizers.
_AROUND_STEP = Optimizer.profile_hook_step(Optimizer.step).__code__


def is_torchs(optimizers: Sequence[Optimizer]) -> bool:
    """Whether this is one of torch's own optimizers, and nothing around it: its step does not write into parameter groups."""
    modules = [type(o).__module__ for o in optimizers] + [type(o).step.__module__ for o in optimizers]
    return len(optimizers) == 1 and all(module.startswith("torch.optim.") for module in modules)


def is_hooked(optimizer: Optimizer) -> bool:
    """Whether other people's code runs in the step of one of torch's own: a hook, or a patch. Quick, for every step."""
    held = optimizer.__dict__
    if held["_optimizer_step_pre_hooks"] or held["_optimizer_step_post_hooks"] or "step" in held:
        return True
    if _global_optimizer_pre_hooks or _global_optimizer_post_hooks:
        return True
    return getattr(type(optimizer).step, "__code__", None) is not _AROUND_STEP


@contextmanager
def in_place(optimizers: Sequence[Optimizer], branch: list[Attributes]) -> Iterator[None]:
    """Have a branch in place for a while, and its attributes as they are then in ``branch`` afterwards."""
    exchange(optimizers, branch, {})
    try:
        yield
    finally:
        exchange(optimizers, branch, {})


def copied(optimizers: Sequence[Optimizer], params: Iterable[Tensor], model: nn.Module | None) -> list[Attributes]:
    """A branch of its own with the values of the one in place; parameters, groups, modules and the optimizers themselves are shared.

    What cannot be copied (a process group, a lock) is shared too, with a RuntimeWarning.
    """
    memo: dict[int, Any] = {}
    modules = _modules(model, optimizers)
    for shared in (*params, *modules, *(b for part in modules for b in part.buffers(recurse=False)), *optimizers):
        memo[id(shared)] = shared
    for optimizer in [*optimizers, *_held(optimizers)]:
        _share_groups(optimizer, memo)
    for inside in _held(optimizers):
        memo[id(inside)] = object.__new__(type(inside))
    for inside in _held(optimizers):
        memo[id(inside)].__dict__.update(_copied(inside, vars(inside), memo))
    return [_copied(o, mine, memo) for o, mine in zip(optimizers, attributes(optimizers), strict=True)]


def _copied(optimizer: Optimizer, mine: Attributes, memo: dict[int, Any]) -> Attributes:
    copies = {}
    # `deepcopy` refuses what is still part of a graph, as state does that was made outside of `no_grad`.
    for tensor in _of_graphs(mine.get("state")):
        memo.setdefault(id(tensor), tensor.detach().clone())
    for key, value in mine.items():
        try:
            copies[key] = deepcopy(value, memo)
        except (TypeError, RuntimeError, NotImplementedError, ValueError) as error:
            warnings.warn(
                f"{type(optimizer).__name__}.{key} cannot be copied ({error}): all branches share it",
                RuntimeWarning,
                stacklevel=2,
            )
            copies[key] = value
    return copies


def _of_graphs(value: Any) -> Iterator[Tensor]:
    """The tensors in a state that are no leaves."""
    if isinstance(value, Tensor) and not value.is_leaf:
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for inside in value.values() if isinstance(value, Mapping) else value:
            yield from _of_graphs(inside)


def _share_groups(optimizer: Optimizer, memo: dict[int, Any]) -> None:
    for shared in (optimizer.param_groups, *optimizer.param_groups, *(vars(optimizer).get(key) for key in HOOKS)):
        memo[id(shared)] = shared


def to_pickle(optimizers: Sequence[Optimizer], branch: list[Attributes]) -> list[Any]:
    """A branch for pickling and `copy`: optimizers of its own, which their classes pickle as they pickle those in place.

    A class leaves out what cannot be pickled, and makes it anew. Wrappers, which do not stand last, have nothing of the kind.
    """
    *around, innermost = branch
    twin = object.__new__(type(optimizers[-1]))
    common = _COMMON - {"step", "_opt_called"}  # what schedulers patch into the object
    twin.__dict__ = {key: value for key, value in vars(optimizers[-1]).items() if key in common} | innermost
    return [*around, twin]


def from_pickle(pickled: list[Any]) -> list[Attributes]:
    """The inverse."""
    *around, twin = pickled
    return [*around, *attributes([twin])]


def _modules(model: nn.Module | None, optimizers: Sequence[Optimizer]) -> list[nn.Module]:
    """The model and what optimizers hold of one, with all parts."""
    roots = [model, *(value for o in optimizers for value in vars(o).values())]
    return [part for root in roots if isinstance(root, nn.Module) for part in root.modules()]


def _held(optimizers: Sequence[Optimizer]) -> list[Optimizer]:
    """Optimizers that other people's wrappers hold inside these."""
    found: list[Optimizer] = []
    for optimizer in optimizers:
        for value in vars(optimizer).values():
            inside = [v for v in (value if isinstance(value, list | tuple) else [value]) if isinstance(v, Optimizer)]
            found += [v for v in inside if not any(v is o for o in (*optimizers, *found))]
    return [*found, *_held_deeper(found, optimizers)]


def _held_deeper(found: list[Optimizer], known: Sequence[Optimizer]) -> list[Optimizer]:
    return [o for o in _held(found) if not any(o is k for k in known)] if found else []
