"""Accelerate: gradient accumulation, its own saving and loading of the whole state, and its wrapper around ours."""

import accelerate
import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState

from conformance.table import same
from frameworks.loops import WRAPS, around, by_hand, loss_of, shown, start

pytestmark = pytest.mark.filterwarnings("ignore")
every_wrap = pytest.mark.parametrize("name", WRAPS)
ACCUMULATED, STEPS = 2, 22


@pytest.fixture(autouse=True)
def no_state_of_other_accelerators():
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def set_up(name, seed=0, accumulated=1):
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulated)
    model, optimizer = start(name, seed)
    return accelerator, *accelerator.prepare(model, optimizer), optimizer


def train(accelerator, model, optimizer, steps, first=0):
    """Accelerate's documented loop."""
    for step in range(first, first + steps):
        with accelerator.accumulate(model):
            accelerator.backward(loss_of(model, step))
            optimizer.step()
            optimizer.zero_grad()


def accumulated_by_hand(name, steps):
    model, optimizer = start(name)
    for step in range(steps):
        (loss_of(model, step) / ACCUMULATED).backward()
        if (step + 1) % ACCUMULATED == 0:
            optimizer.step()
            optimizer.zero_grad()
    return model, optimizer


@every_wrap
def test_accumulated_gradients_make_the_steps_they_make_by_hand(name):
    accelerator, model, prepared, optimizer = set_up(name, accumulated=ACCUMULATED)
    train(accelerator, model, prepared, STEPS)
    plain_model, plain = accumulated_by_hand(name, STEPS)
    assert same(model.state_dict(), plain_model.state_dict())
    assert same(optimizer.state_dict(), plain.state_dict())


@every_wrap
def test_a_saved_state_of_the_middle_of_a_round_goes_on(name, tmp_path):
    accelerator, model, prepared, _ = set_up(name, accumulated=ACCUMULATED)
    train(accelerator, model, prepared, 10)
    accelerator.save_state(str(tmp_path / "state"))
    accelerator, model, prepared, optimizer = set_up(name, seed=5, accumulated=ACCUMULATED)
    accelerator.load_state(str(tmp_path / "state"))
    train(accelerator, model, prepared, STEPS - 10, first=10)
    plain_model, plain = accumulated_by_hand(name, STEPS)
    assert same(model.state_dict(), plain_model.state_dict())
    assert same(optimizer.state_dict(), plain.state_dict())


@every_wrap
def test_a_state_saved_in_evaluation_mode_goes_on(name, tmp_path):
    """Accelerate passes `eval` and `train` on: the model file has the average, and training goes on from its own weights."""
    accelerator, model, prepared, _ = set_up(name, accumulated=ACCUMULATED)
    train(accelerator, model, prepared, 10)
    prepared.eval()
    plain_model, plain = accumulated_by_hand(name, 10)
    assert same(model.state_dict(), shown(plain_model, plain))
    accelerator.save_state(str(tmp_path / "state"))
    accelerator, model, prepared, _ = set_up(name, seed=5, accumulated=ACCUMULATED)
    accelerator.load_state(str(tmp_path / "state"))
    prepared.train()
    train(accelerator, model, prepared, STEPS - 10, first=10)
    plain_model, plain = accumulated_by_hand(name, STEPS)
    assert same(list(model.parameters()), list(plain_model.parameters()))


@every_wrap
def test_the_wrapper_goes_around_and_accelerates_steps(name):
    """The object made by hand has `around`; the prepared one takes the steps."""
    accelerator, model, prepared, optimizer = set_up(name)
    for step in range(7):
        for branch in optimizer.around():
            prepared.zero_grad()
            accelerator.backward(loss_of(model, step, branch))
            prepared.step()
    plain_model, plain = by_hand(name, around, 7)
    assert same(model.state_dict(), plain_model.state_dict())
    assert same(optimizer.state_dict(), plain.state_dict())
