"""Only what can be trained is averaged; the rest is the model's own, wherever the average is shown."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from lookaround.averaging import SWAD, FoldedSWA, RunningAverage, uniform


class Adapted(nn.Module):
    """A frozen bfloat16 matrix with a low-rank adapter, a frozen integer table beside it."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(64, 64, bias=False, dtype=torch.bfloat16).requires_grad_(False)
        self.codes = nn.Parameter(torch.zeros(64, dtype=torch.uint8), requires_grad=False)
        self.down, self.up = nn.Linear(64, 1, bias=False), nn.Linear(1, 64, bias=False)


def move(model, value):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)


@pytest.mark.parametrize("make", [lambda m: RunningAverage(m, uniform()), lambda m: SWAD(m, converge=1)])
def test_an_average_of_an_adapted_model_costs_the_adapters(make, allocations):
    model = Adapted()
    with allocations() as seen:
        average = make(model)
        average.update()
        with average.averaged() if isinstance(average, RunningAverage) else average._at_point():
            pass
    # A mean and what is put aside while it is shown, of 128 float32 adapter weights; the base would be 8 KiB and more.
    assert seen.total <= 3 * 128 * 4
    move(model, 3.0)
    if isinstance(average, SWAD):
        average.evaluated(1.0)
    with average.averaged():
        assert (model.base.weight == 3.0).all()
        assert (model.codes == 3).all()
        assert not (model.down.weight == 3.0).any()
    kept = str(average.state_dict())
    assert "base" not in kept
    assert "codes" not in kept


def test_the_frozen_rest_is_exported_and_copied_as_the_model_has_it(tmp_path):
    model = Adapted()
    average = RunningAverage(model, uniform())
    for value in (1.0, 3.0):
        move(model, value)
        average.update()
    average.export(tmp_path / "whole.safetensors")
    loaded, copied = Adapted(), Adapted()
    loaded.load_state_dict(load_file(tmp_path / "whole.safetensors"))
    average.copy_to(copied)
    for other in (loaded, copied):
        assert (other.base.weight == 3.0).all()
        assert other.base.weight.dtype == torch.bfloat16
        assert (other.codes == 3).all()
        assert (other.up.weight == 2.0).all()
    theirs = AveragedModel(model)
    theirs.load_state_dict(average.averaged_model_state())
    assert (theirs.module.base.weight == 3.0).all()
    assert (theirs.module.down.weight == 2.0).all()
    average.load_averaged_model_state(theirs.state_dict())
    assert average.count == 2


def test_the_switch_averages_them_too():
    model = nn.Sequential(nn.Linear(1, 1, bias=False).requires_grad_(False), nn.Linear(1, 1, bias=False))
    whole = RunningAverage(model, uniform(), average_frozen=True)
    swad = SWAD(model, converge=1, average_frozen=True)
    swa = FoldedSWA(model, iterations=2, cycle=1, average_frozen=True)
    for value in (1.0, 3.0):
        move(model, value)
        whole.update()
        swad.update()
        swad.evaluated(1.0)
        swa.step()
    assert model[0].weight.item() == 2.0
    move(model, 8.0)
    for average in (whole, swad):
        with average.averaged():
            assert (model[0].weight.item(), model[1].weight.item()) == (2.0, 2.0)


def test_a_model_with_nothing_to_train_is_refused_unless_asked_for():
    model = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ValueError, match=r"no parameter of the model requires a gradient.*average_frozen=True"):
        RunningAverage(model, uniform())
    RunningAverage(model, uniform(), average_frozen=True).update()


def test_a_parameter_that_is_thawed_later_is_not_forgotten_in_silence():
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    model[0].requires_grad_(False)
    average = RunningAverage(model, uniform())
    average.update()
    before = copy.deepcopy(average.state_dict())
    model[0].requires_grad_(True)
    with pytest.raises(ValueError, match=r"'0\.weight' was frozen when the average was built.*average_frozen=True"):
        average.update()
    assert str(average.state_dict()) == str(before)


def test_a_parameter_that_is_frozen_later_stays_in_the_average():
    model = nn.Linear(1, 1, bias=False)
    average = RunningAverage(model, uniform())
    move(model, 1.0)
    average.update()
    model.requires_grad_(False)
    move(model, 3.0)
    average.update()
    with average.averaged():
        assert model.weight.item() == 2.0


def test_what_is_copied_is_kept_as_it_is():
    model = nn.Linear(2, 2)
    model.register_buffer("table", torch.ones(4096, dtype=torch.bfloat16))
    average = RunningAverage(model, uniform())
    average.update()
    assert average.state_dict()["copied"]["table"].dtype == torch.bfloat16
