"""Who writes into parameter groups: torch's own optimizers never do, so nobody looks; whoever else may is watched at every step.

The steps of torch's own go unwatched after the first round. That rests on the first test here, which a new optimizer of torch joins by
itself; and where other code runs in such a step, a hook, a closure or a patch, they are watched.
"""

import inspect

import pytest
import torch
from torch.optim import SGD, Adam
from torch.optim.optimizer import register_optimizer_step_post_hook

from conformance.enumeration import ARGUMENTS, EVERYTHING, NOT_BUILT, Run, parameters
from lookaround import Lookahead, Lookaround

TORCHS = [name for name in EVERYTHING if name.startswith("torch.") and name not in NOT_BUILT]
WAYS = {
    "plain": {},
    **{way: {way: True} for way in ("foreach", "fused", "amsgrad", "centered")},
    "momentum": {"momentum": 0.9, "nesterov": True},
    "a rate that is a tensor": {"lr": torch.tensor(0.01)},
}
FUSED_ON_A_CPU = {"torch.Adagrad", "torch.Adam", "torch.AdamW", "torch.SGD"}
BRANCHES, K = 3, 2


def has(name, way):
    if way == "fused":
        return name in FUSED_ON_A_CPU
    return WAYS[way].keys() <= inspect.signature(EVERYTHING[name].func).parameters.keys()


def settings(optimizer):
    """What stands in the groups, with the versions of tensors."""
    items = [item for group in optimizer.param_groups for item in group.items()]
    return [(key, value, getattr(value, "_version", None)) for key, value in items]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "way"), [(name, way) for name in TORCHS for way in WAYS if has(name, way)])
def test_a_step_of_torchs_own_writes_into_no_group_and_no_attribute(name, way):
    run = Run(name)
    run.optimizer = EVERYTHING[name](run.params, **ARGUMENTS.get(name, {}), **WAYS[way])
    before, attributes = settings(run.optimizer), list(vars(run.optimizer))
    for step in range(6):
        run.step(step)
    assert list(vars(run.optimizer)) == attributes
    for (key, value, version), (was, then, at) in zip(settings(run.optimizer), before, strict=True):
        assert (key, version) == (was, at)
        assert value is then


def count(optimizer, *_):
    for group in optimizer.param_groups:
        group["count"] = group.get("count", 0) + 1


def grad(optimizer):
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = torch.ones_like(param)


def flat(optimizer, steps):
    """What stands in the group of each branch after its last turn, in a loop that knows nothing of branches."""
    counts = {}
    for _ in range(steps):
        branch, last = optimizer.branch, []
        grad(optimizer)
        handle = optimizer.inner.register_step_post_hook(
            lambda o, *_, last=last: last.append(o.param_groups[0].get("count"))
        )
        optimizer.step()
        handle.remove()
        counts[branch] = last[0]
    return counts


def begun_in(steps):
    """A wrapped optimizer after so many steps of a flat loop."""
    optimizer = Lookaround(SGD(parameters("torch.SGD", 0, torch.float32), lr=0.01), branches=BRANCHES, k=K)
    for _ in range(steps):
        grad(optimizer)
        optimizer.step()
    return optimizer


def by_a_hook(optimizer, write):
    """Of the inner optimizer alone."""
    optimizer.inner.register_step_post_hook(write)
    return optimizer.step


def by_a_global_hook(optimizer, write):
    """Of every optimizer there is."""
    handle = register_optimizer_step_post_hook(write)

    def step():
        optimizer.step()

    step.over = handle.remove
    return step


def by_a_closure(optimizer, write):
    """Given with each step."""
    return lambda: optimizer.step(lambda: write(optimizer.inner))


def by_a_patch(optimizer, write):
    """Of the class of the inner optimizer."""
    plain, cls = SGD.step, type(optimizer.inner)

    def patched(self, closure=None):
        write(self)
        return plain(self, closure)

    cls.step = patched

    def step():
        optimizer.step()

    step.over = lambda: setattr(cls, "step", plain)
    return step


WRITERS = [by_a_hook, by_a_global_hook, by_a_closure, by_a_patch]


@pytest.mark.parametrize("begun", [0, 2, BRANCHES * K, BRANCHES * K + 2, BRANCHES * K * 2])
@pytest.mark.parametrize("by", WRITERS)
@pytest.mark.parametrize("where", ["group", "attribute"])
def test_what_other_code_counts_in_a_step_is_each_branchs_own(where, by, begun):
    """Begun before the first round, in the middle of one, at the start of a later one: when nobody has looked for a while."""
    optimizer, seen = begun_in(begun), []

    def write(inner, *_):
        if where == "group":
            count(inner)
            seen.append(inner.param_groups[0]["count"])
        else:
            inner.calls = getattr(inner, "calls", 0) + 1
            seen.append(inner.calls)

    step = by(optimizer, write)
    try:
        turns = []
        for _ in range(BRANCHES * K * 2):
            grad(optimizer)
            turns.append(optimizer.branch)
            step()
    finally:
        getattr(step, "over", lambda: None)()
    by_branch = {branch: [n for b, n in zip(turns, seen, strict=True) if b == branch] for branch in range(BRANCHES)}
    assert by_branch == {branch: [*range(1, 2 * K + 1)] for branch in range(BRANCHES)}


class Counts(SGD):
    """Of a user's own, which counts in its group."""

    def step(self, closure=None):
        count(self)
        return super().step(closure)


def test_what_a_subclass_of_torchs_own_counts_is_each_branchs_own():
    optimizer = Lookaround(Counts(parameters("torch.SGD", 0, torch.float32), lr=0.01), branches=BRANCHES, k=K)
    for rounds in (1, 2, 3):
        assert flat(optimizer, BRANCHES * K) == dict.fromkeys(range(BRANCHES), K * rounds)


def test_what_a_patched_step_counts_is_each_branchs_own():
    inner = SGD(parameters("torch.SGD", 0, torch.float32), lr=0.01)
    plain, inner.step = inner.step, lambda closure=None: (count(inner), plain(closure))[1]
    optimizer = Lookaround(inner, branches=BRANCHES, k=K)
    for rounds in (1, 2, 3):
        assert flat(optimizer, BRANCHES * K) == dict.fromkeys(range(BRANCHES), K * rounds)


@pytest.mark.parametrize("wrap", [lambda o: Lookahead(o, k=K), lambda o: Lookaround(o, branches=BRANCHES, k=K)])
def test_a_rate_written_in_an_unwatched_round_reaches_every_branch(wrap):
    """Whoever schedules writes into the one group there is."""
    optimizer = wrap(Adam(parameters("torch.Adam", 0, torch.float32), lr=0.01))
    for step in range(BRANCHES * K * 4):
        grad(optimizer)
        if step == BRANCHES * K * 2 + 1:
            optimizer.param_groups[0]["lr"] = 0.5
        optimizer.step()
        if step > BRANCHES * K * 2:
            assert optimizer.inner.param_groups[0]["lr"] == 0.5
    assert not [key for key in optimizer.param_groups[0] if key.endswith(".lr")]
