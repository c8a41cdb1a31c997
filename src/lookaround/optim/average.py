"""The average step itself: φ ← φ + α (mean of the branches - φ), for weights, buffers, nested slow weights and momentum."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lookaround.optim import momentum
from lookaround.optim.checks import NotFiniteError
from lookaround.optim.wrapper import Wrapper, chain
from lookaround.tensors import all_finite, average_, clone, copy_, finite_each

if TYPE_CHECKING:
    from lookaround.optim.rounds import Rounds


@dataclass
class Lists:
    """One thing to average: the current branch's tensors, those of each idle branch, φ (or None where α = 1), and α."""

    fast: list[Tensor]
    idle: dict[int, list[Tensor]]
    slow: list[Tensor] | None
    alpha: float


def average_all(wrapper: "Rounds", *, write_back: bool) -> None:
    """Average everything that is weights: the common start of the next round everywhere, or (to look at) in the model alone."""
    odd = _odd_buffers(wrapper)
    fixed = set.intersection(*odd.values()) if odd else set()
    left_out = _left_out(wrapper, {branch for branch, names in odd.items() if names - fixed})
    everything = [*_weights(wrapper), *_buffers(wrapper, fixed)]
    if write_back:
        everything += [*_nested(wrapper), *_momentum(wrapper)]
    for lists in everything:
        _average(lists, wrapper.branch, left_out, write_back)
    if write_back:
        _copy_counters(wrapper)
        _restart(
            wrapper,
            left_out,
            "has weights that are infinite or NaN: it is left out of the average "
            f"of round {wrapper._get('round')} and restarts from it",
        )


def restart_all(wrapper: "Rounds") -> None:
    """Make the weights and buffers in the model the common start of everything that is weights; momentum goes as at an average."""
    if not all_finite(wrapper._params()):
        raise NotFiniteError(
            "the weights in the model are infinite or NaN: no round can start from them", "the new start"
        )
    left_out = _left_out_inside(wrapper)
    if not wrapper._at_start():
        for lists in _momentum(wrapper):
            _average(lists, wrapper.branch, left_out, write_back=True)
    _overwrite(wrapper)
    _restart(wrapper, left_out, "has an inner state that is infinite or NaN: it takes another branch's at this restart")


def _left_out_inside(wrapper: "Rounds") -> set[int]:
    """The branches whose inner state is not finite, by which a branch that diverged is known after its weights were replaced."""
    if not wrapper._checks_finite:
        return set()
    members = {b: wrapper._branches.entries(b).values() for b in range(wrapper.branches)}
    tensors = {
        b: [t for entry in entries for t in entry.values() if isinstance(t, Tensor) and t.is_floating_point()]
        for b, entries in members.items()
    }
    left_out = {b for b, of in tensors.items() if not all_finite(of)}
    if len(left_out) == len(members):
        raise NotFiniteError(
            f"the inner state of all {len(members)} branches is infinite or NaN: build a new optimizer to go on",
            "every branch",
        )
    return left_out


def _overwrite(wrapper: "Rounds") -> None:
    """Put the model's weights and buffers wherever this wrapper, or one inside it, keeps some: φ and idle branches, also their own φ."""
    params = wrapper._params()
    inside = [wrapped for wrapped in chain(wrapper) if isinstance(wrapped, Wrapper)]
    buffers = {w.name: w._branches.model_buffers() if hasattr(w, "_branches") else {} for w in inside}
    for key, values in wrapper.state.items():
        if not isinstance(key, str) or key.partition(".")[0] not in buffers:
            continue
        if key.endswith((".slow", ".weights")):
            copy_(list(values.values()), [params[i] for i in values])
        elif key.endswith(".buffers"):
            owner = next(name for name in reversed(key.split(".")) if name in buffers)
            copy_(list(values.values()), [buffers[owner][name] for name in values])


def prepare(wrapper: "Rounds") -> None:
    """Create the slow weights of nested wrappers and of momentum with the first step: a checkpoint's keys do not change after it."""
    list(_nested(wrapper))
    if wrapper._inner_state == "interpolate":
        for name, ours in momentum.moments(wrapper._branches.entries(wrapper.branch)).items():
            _slow_momentum(wrapper, name, ours)


def _average(lists: Lists, current: int, left_out: set[int], write_back: bool) -> None:
    read = [branch for branch in lists.idle if branch not in left_out]
    if current in left_out:
        copy_(lists.fast, lists.idle[read.pop(0)])
    average_(lists.fast, [lists.idle[b] for b in read], lists.slow, lists.alpha, write_back=write_back)
    if write_back:
        for branch in lists.idle.keys() - set(read):
            copy_(lists.idle[branch], lists.fast)


def _weights(wrapper: "Rounds") -> Iterator[Lists]:
    slow = wrapper._tensors("slow")
    idle = {branch: wrapper._branches.weights(branch) for branch in wrapper._branches.idle()}
    taking_part = next(iter(idle.values()), slow)
    offset, total = 0, wrapper._count()
    for group in wrapper.param_groups:
        params = group["params"]
        at: Sequence[int] = range(offset, offset + len(params))
        if len(taking_part) < total:
            at = [i for i in at if i in taking_part]
            params = [params[i - offset] for i in at]
        offset += len(group["params"])
        phi = [*map(slow.__getitem__, at)] if slow else None
        others = {b: [*map(weights.__getitem__, at)] for b, weights in idle.items()}
        yield Lists(params, others, phi, group[wrapper._key("alpha")])


def _buffers(wrapper: "Rounds", fixed: set[str]) -> Iterator[Lists]:
    current = wrapper._branches.model_buffers()
    names = [name for name, buffer in current.items() if _is_averaged(buffer) and name not in fixed]
    if not names:
        return
    idle = {b: wrapper._branches.buffers(b) for b in wrapper._branches.idle()}
    slow = wrapper.state.get(f"{wrapper.name}.slow.buffers")
    phi = [slow[n] for n in names] if slow else None
    yield Lists([current[n] for n in names], {b: [of[n] for n in names] for b, of in idle.items()}, phi, wrapper.alpha)


def _is_averaged(buffer: Tensor) -> bool:
    return buffer.is_floating_point() or buffer.is_complex()


def _copy_counters(wrapper: "Rounds") -> None:
    """Integer buffers (batch counters) are copied from the current branch."""
    current = wrapper._branches.model_buffers()
    names = [name for name, buffer in current.items() if not _is_averaged(buffer)]
    for branch in wrapper._branches.idle():
        copy_([wrapper._branches.buffers(branch)[n] for n in names], [current[n] for n in names])


def _nested(wrapper: "Rounds") -> Iterator[Lists]:
    """The slow weights of a wrapper inside this one are weights too: a branch that restarts takes its φ along."""
    outer = wrapper._tensors("slow")
    for key, values in wrapper._branches.foreign(wrapper.branch).items():
        idle = {b: wrapper._branches.foreign(b).get(key, {}) for b in wrapper._branches.idle()}
        if key.endswith(".slow"):
            slow = wrapper.state.setdefault(f"{wrapper.name}.slow.{key}", {}) if outer else {}
            for i in values.keys() & outer.keys() - slow.keys():
                # A nested round begins at the first step of this one, from the same weights.
                slow[i] = clone([outer[i]])[0]
            yield from _by_alpha(wrapper, values, idle, slow)


def _by_alpha(
    wrapper: "Rounds", ours: dict[int, Tensor], idle: dict[int, dict[int, Tensor]], slow: dict[int, Tensor]
) -> Iterator[Lists]:
    """What all branches have of something that is kept by parameter, to be averaged with the α of each parameter's group."""
    offset = 0
    for group in wrapper.param_groups:
        indices = range(offset, offset + len(group["params"]))
        offset += len(group["params"])
        at = [i for i in indices if i in ours and all(i in theirs for theirs in idle.values())]
        if at:
            phi = [slow[i] for i in at] if slow else None
            theirs = {b: [of[i] for i in at] for b, of in idle.items()}
            yield Lists([ours[i] for i in at], theirs, phi, group[wrapper._key("alpha")])


def _momentum(wrapper: "Rounds") -> Iterator[Lists]:
    """Reset momentum, or list it for interpolation between its value at the round's start (zero at first) and the mean."""
    mode = wrapper._inner_state
    if mode == "maintain":
        return
    entries = {b: wrapper._branches.entries(b) for b in range(wrapper.branches)}
    if mode == "reset":
        found = [momentum.reset(of) for of in entries.values()]
        _warn_once(wrapper, any(found))
        return
    moments = {b: momentum.moments(of) for b, of in entries.items()}
    _warn_once(wrapper, any(moments.values()))
    for name, ours in moments[wrapper.branch].items():
        idle = {b: moments[b].get(name, {}) for b in wrapper._branches.idle()}
        yield from _by_alpha(wrapper, ours, idle, _slow_momentum(wrapper, name, ours))


def _slow_momentum(wrapper: "Rounds", name: str, ours: dict[int, Tensor]) -> dict[int, Tensor]:
    if not wrapper._tensors("slow"):
        return {}
    slow: dict[int, Tensor] = wrapper.state.setdefault(f"{wrapper.name}.slow.{name}", {})
    for i in ours.keys() - slow.keys():
        slow[i] = torch.zeros_like(clone([ours[i]], wide=True)[0])
    return slow


def _warn_once(wrapper: "Rounds", found: bool) -> None:
    if not found and not wrapper._get("round"):
        momentum.warn_without_momentum(wrapper._inner_state, wrapper.inner)


def _odd_buffers(wrapper: "Rounds") -> dict[int, set[str]]:
    """The buffers of each branch that hold an infinity or NaN.

    Those that do in every branch are so by design (a mask of -inf, say): they speak against none, and are not averaged.
    """
    current = wrapper._branches.model_buffers()
    if not current:
        return {}
    members = {wrapper.branch: current, **{b: wrapper._branches.buffers(b) for b in wrapper._branches.idle()}}
    return {
        b: {name for name, finite in zip(of, finite_each(list(of.values())), strict=True) if not finite}
        for b, of in members.items()
    }


def _left_out(wrapper: "Rounds", odd: set[int]) -> set[int]:
    """The branches with a weight or buffer that is not finite. Raises ValueError if that is all of them."""
    if not wrapper._checks_finite:
        return set()
    members = {b: list(wrapper._branches.weights(b).values()) for b in wrapper._branches.idle()}
    members[wrapper.branch] = [p for p in wrapper._params() if p.requires_grad]
    left_out = odd | {b for b, tensors in members.items() if not all_finite(tensors)}
    if len(left_out) == len(members):
        raise NotFiniteError(
            f"the weights or buffers of all {len(members)} branches are infinite or NaN, there is nothing to average: "
            "lower the learning rate, clip gradients, or go back to a checkpoint",
            "every branch",
        )
    return left_out


def _restart(wrapper: "Rounds", left_out: set[int], why: str) -> None:
    """Put left-out branches back: they already have the average's weights, and take a healthy branch's inner state."""
    for branch in sorted(left_out):
        warnings.warn(f"branch {branch} of {wrapper.branches} {why}", RuntimeWarning, stacklevel=2)
    if wrapper.branch in left_out:
        wrapper._branches.load(next(b for b in range(wrapper.branches) if b not in left_out), same_weights=True)
    for branch in left_out:
        wrapper._branches.restart(branch)
