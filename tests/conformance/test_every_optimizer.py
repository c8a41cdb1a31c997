"""A branch is a whole inner optimizer: of torch, timm and pytorch_optimizer, every one that can be built.

With equal gradients and a round that does not end, each of three branches has to follow the inner optimizer alone, bit for bit,
whatever that keeps and wherever it keeps it; and so it has to after a checkpoint from the middle of a pass.
"""

import copy
import io
import pickle
from collections import deque

import pytest
import torch

from conformance.enumeration import EVERYTHING, NOT_BUILT, Run, build, parameters
from conformance.table import same
from lookaround import Lookaround

STEPS, BRANCHES = 12, 3
NAMES = [name for name in EVERYTHING if name not in NOT_BUILT]
everyone = pytest.mark.parametrize("name", NAMES)
pytestmark = pytest.mark.filterwarnings("ignore")  # what other people's code warns of is not ours to fix

# Whose state torch.load refuses with weights_only=True, alone too: it holds objects of its library.
HOLDS_OBJECTS = {f"pytorch_optimizer.{n}" for n in ("adashift", "conda", "scalableshampoo", "scion", "scionlight")}
# Whose state dict is not torch's: it has no "state", so there is nowhere to put a branch.
OF_ITS_OWN_SCHEMA = {"pytorch_optimizer.magma"}
# What cannot step bfloat16 weights on a CPU, alone: a decomposition there is no kernel of; NaN from the first step.
NOT_BFLOAT16 = {"pytorch_optimizer.lorarite", "pytorch_optimizer.adai"}

# Which cannot step after a copy, alone: torch's pickling leaves out attributes. Most of pytorch_optimizer's cannot.
CANNOT_BE_COPIED = {"torch.LBFGS", "timm.adahessian"}


@pytest.fixture(autouse=True)
def not_compiled():
    """timm's Kron compiles itself, which takes a minute and a half."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


def wrap(inner):
    return Lookaround(inner, branches=BRANCHES, k=1000)


def schedule(optimizer, step):
    """A learning rate written from outside, half-way."""
    if step == STEPS // 2:
        for group in optimizer.param_groups:
            group["lr"] = 0.004


def alone(name, steps=STEPS, dtype=torch.float32):
    """The weights after each step of the inner optimizer alone, and the run."""
    run, weights = Run(name, dtype=dtype), []
    for step in range(steps):
        schedule(run.optimizer, step)
        weights.append(run.step(step))
    return weights, run


def plain(value):
    """Nested dictionaries and lists of what is in there, in the objects that optimizers keep in their state too."""
    if isinstance(value, dict):
        return {key: plain(inside) for key, inside in value.items()}
    if isinstance(value, list | tuple | deque):
        return [plain(inside) for inside in value]
    if isinstance(value, torch.Tensor):
        return [str(value.layout), value.to_dense()]
    return {"class": type(value).__name__, **plain(vars(value))} if hasattr(value, "__dict__") else value


def equal(first, second):
    """Equal bit for bit, types, dtypes and layouts included."""
    return same(plain(first), plain(second))


def entries(optimizer):
    """What the inner optimizer keeps of each parameter, as the state dict of optimizer and wrapper has it."""
    state = {i: entry for i, entry in optimizer.state_dict()["state"].items() if isinstance(i, int)}
    theirs = {i: {k: v for k, v in e.items() if not str(k).startswith("lookaround")} for i, e in state.items()}
    return {i: entry for i, entry in theirs.items() if entry}


def test_the_libraries_are_there_and_the_table_is_of_what_they_have():
    assert {name.partition(".")[0] for name in EVERYTHING} >= {"torch"}
    if any(name.startswith("timm.") for name in EVERYTHING):
        assert set(EVERYTHING) >= set(NOT_BUILT) | HOLDS_OBJECTS | OF_ITS_OWN_SCHEMA | NOT_BFLOAT16


@pytest.mark.parametrize("name", [name for name in NOT_BUILT if name in EVERYTHING])
def test_what_is_left_out_cannot_be_built_or_stepped(name):
    with pytest.raises((TypeError, AttributeError, AssertionError, ImportError, ValueError), match=NOT_BUILT[name]):
        build(name, parameters(name, 0, torch.float32))


@everyone
def test_each_branch_follows_the_inner_optimizer_alone(name):
    expected, single = alone(name)
    assert not same(expected[0], expected[-1])
    run = Run(name, wrap)
    for step in range(STEPS):
        schedule(run.optimizer, step)
        for branch in run.optimizer.around():
            assert same(run.step(step), expected[step]), f"branch {branch}, step {step}"
            if step == STEPS - 1 and name not in OF_ITS_OWN_SCHEMA:
                assert equal(entries(run.optimizer), entries(single.optimizer))


def through_file(name, value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=name not in HOLDS_OBJECTS)


def save(name, run):
    return through_file(name, [[p.detach() for p in run.params], run.optimizer.state_dict()])


def interrupted(name, at, dtype):
    """A run saved before and after the step of the middle branch, at pass ``at``; it goes on to the end of that pass."""
    run, saved = Run(name, wrap, dtype=dtype), []
    for step in range(at + 1):
        for branch in run.optimizer.around():
            if step == at and branch == 1:
                saved.append(save(name, run))
            run.step(step)
            if step == at and branch == 1:
                saved.append(save(name, run))
    return saved, run


def resume(name, saved, dtype):
    weights, state_dict = saved
    run = Run(name, wrap, seed=9, dtype=dtype)
    with torch.no_grad():
        for param, weight in zip(run.params, weights, strict=True):
            param.copy_(weight)
    run.optimizer.load_state_dict(state_dict)
    assert equal(run.optimizer.state_dict(), state_dict)
    return run


def check_resuming(name, dtype, at, steps):
    expected, _ = alone(name, steps, dtype)
    saved, whole = interrupted(name, at, dtype)
    for step in range(at + 1, steps):
        for _ in whole.optimizer.around():
            assert same(whole.step(step), expected[step])
    for checkpoint, left in zip(saved, ([1, 2], [2]), strict=True):
        run = resume(name, checkpoint, dtype)
        for step in range(at, steps):
            visited = []
            for branch in run.optimizer.around():
                visited.append(branch)
                assert same(run.step(step), expected[step]), f"branch {branch}, step {step}"
            assert visited == (left if step == at else [0, 1, 2])
        assert equal(run.optimizer.state_dict(), whole.optimizer.state_dict())


@pytest.mark.parametrize("name", [n for n in NAMES if n not in OF_ITS_OWN_SCHEMA])
def test_a_checkpoint_from_the_middle_of_a_pass_goes_on_bit_for_bit(name):
    check_resuming(name, torch.float32, 2, 4)


LOW = [name for name in NAMES if name not in NOT_BFLOAT16 | OF_ITS_OWN_SCHEMA]


@pytest.mark.parametrize("name", LOW)
def test_state_of_bfloat16_weights_keeps_its_dtypes_through_a_checkpoint(name):
    """float32 momentum of bfloat16 weights stays float32, in the branch in the model and in those that wait."""
    check_resuming(name, torch.bfloat16, 1, 3)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda run: pickle.loads(pickle.dumps(run))}


def goes_on_alone(name, again, expected):
    """Whether a copy of the inner optimizer alone, made with its parameters, takes the same steps."""
    run = Run(name)
    for step in range(2):
        run.step(step)
    try:
        twin = again(run)
        return all(same(twin.step(step), expected[step]) for step in range(2, 4))
    except (AttributeError, KeyError, TypeError, RuntimeError, pickle.PicklingError):
        return False


@pytest.mark.parametrize("way", COPIES)
@everyone
def test_three_branches_can_be_copied_where_the_inner_optimizer_can(name, way):
    """Each is copied as its class copies it: what that leaves out, functions it has compiled say, is left out of all."""
    expected, _ = alone(name, 4)
    if not goes_on_alone(name, COPIES[way], expected):
        assert name in CANNOT_BE_COPIED or name.startswith("pytorch_optimizer.")
        return
    run = Run(name, wrap)
    for step in range(2):
        for branch in run.optimizer.around():
            run.step(step)
            if step == 1 and branch == 1:
                twin = COPIES[way](run)
    for step in range(1, 4):
        for _ in twin.optimizer.around():
            assert same(twin.step(step), expected[step])


@pytest.mark.parametrize("name", sorted(OF_ITS_OWN_SCHEMA & set(EVERYTHING)))
def test_a_state_dict_of_another_schema_is_refused(name):
    _, run = alone(name, 2)
    assert "state" not in run.optimizer.state_dict()
    wrapped = Run(name, wrap)
    wrapped.step(0)
    with pytest.raises(ValueError, match="state"):
        wrapped.optimizer.state_dict()


@pytest.mark.parametrize("name", sorted(HOLDS_OBJECTS & set(EVERYTHING)))
def test_the_state_of_what_holds_objects_is_refused_alone_too(name):
    _, run = alone(name, 2)
    with pytest.raises(Exception, match="Weights only load failed"):
        through_file("", run.optimizer.state_dict())


@pytest.mark.parametrize("name", sorted(NOT_BFLOAT16 & set(EVERYTHING)))
def test_what_cannot_step_bfloat16_cannot_alone(name):
    try:
        weights, _ = alone(name, 2, torch.bfloat16)
    except (RuntimeError, NotImplementedError):
        return
    assert not all(torch.isfinite(w).all() for w in weights[-1])
