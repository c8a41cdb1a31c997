"""Contract 3: `torch.compile` of the step trains as the step itself, with the inner optimizer's compiled kernels inside."""

import copy
import shutil

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW

from lookaround import Lookahead, Lookaround

INNERS = {
    "sgd": lambda params: SGD(params, lr=0.05, momentum=0.9),
    "adam": lambda params: Adam(params, lr=0.01),
    "adamw": lambda params: AdamW(params, lr=0.01, weight_decay=0.1),
}
WRAPS = {
    "lookahead": lambda inner: Lookahead(inner, k=2, alpha=0.5),
    "lookaround d=3": lambda inner: Lookaround(inner, branches=3, k=2),
}
COMPILERS = ("eager", "inductor")
EXACTLY = {"rtol": 0.0, "atol": 0.0}
# Inductor may fuse a multiplication and an addition; Adam, alone too, computes its bias correction in a tensor where it is compiled.
NEARLY = {"rtol": 2e-5, "atol": 1e-6}
pytestmark = pytest.mark.filterwarnings("ignore")  # of the compiler's own, about modules it imports


@pytest.fixture(autouse=True)
def no_compiled_code_of_other_tests():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def backend(name):
    if name == "inductor" and not any(map(shutil.which, ("g++", "c++", "clang++"))):
        pytest.skip("inductor needs a C++ compiler")
    return name


def start(wrap, inner):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    return model, WRAPS[wrap](INNERS[inner](list(model.parameters())))


def differentiate(model, step):
    model.zero_grad()
    model(torch.randn(6, 4, generator=torch.Generator().manual_seed(step))).square().mean().backward()


def train(model, optimizer, step_once, steps, first=0):
    for step in range(first, first + steps):
        differentiate(model, step)
        step_once()
        yield [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("inner", INNERS)
@pytest.mark.parametrize("wrap", WRAPS)
def test_a_compiled_step_trains_as_the_step_itself(wrap, inner, compiler):
    (model, optimizer), (compiled_model, compiled) = start(wrap, inner), start(wrap, inner)
    step = torch.compile(compiled.step, backend=backend(compiler))
    tolerance = EXACTLY if (inner, compiler) == ("sgd", "eager") else NEARLY
    plain = train(model, optimizer, optimizer.step, 8)
    for ours, theirs in zip(plain, train(compiled_model, compiled, step, 8), strict=True):
        torch.testing.assert_close(theirs, ours, **tolerance)
    assert ours[0].ne(start(wrap, inner)[0][0].weight).any()
    assert settings(compiled) == settings(optimizer)


def settings(optimizer):
    return [{k: v for k, v in group.items() if isinstance(v, int | float | bool)} for group in optimizer.param_groups]


@pytest.mark.parametrize("inner", INNERS)
def test_a_compiled_step_goes_around_and_resumes(inner):
    (model, optimizer), (compiled_model, compiled) = start("lookaround d=3", inner), start("lookaround d=3", inner)
    step_once = torch.compile(compiled.step, backend="eager")
    for step in range(7):
        if step == 3:
            saved = copy.deepcopy([compiled_model.state_dict(), compiled.state_dict()])
            compiled_model, compiled = start("lookaround d=3", inner)
            compiled_model.load_state_dict(saved[0])
            compiled.load_state_dict(saved[1])
            step_once = torch.compile(compiled.step, backend="eager")
        for ours, theirs in zip(optimizer.around(), compiled.around(), strict=True):
            assert ours == theirs
            differentiate(model, 10 * step + ours)
            differentiate(compiled_model, 10 * step + ours)
            optimizer.step()
            step_once()
        tolerance = EXACTLY if inner == "sgd" else NEARLY
        torch.testing.assert_close(list(compiled_model.parameters()), list(model.parameters()), **tolerance)


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_compiled_training_step_holds_forward_backward_and_step(wrap):
    """The whole step in one compiled function, as training scripts write it."""
    (model, optimizer), (compiled_model, compiled) = start(wrap, "adamw"), start(wrap, "adamw")

    def whole(model, optimizer, inputs):
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()

    together = torch.compile(whole, backend="eager")
    for step in range(9):
        inputs = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))
        whole(model, optimizer, inputs)
        together(compiled_model, compiled, inputs)
        torch.testing.assert_close(list(compiled_model.parameters()), list(model.parameters()), **NEARLY)
