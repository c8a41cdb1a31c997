"""What is re-estimated inside `averaged()` belongs to the average: whatever is evaluated there is what is exported, copied and saved."""

import copy
import io

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lookaround.averaging import SWAD, RunningAverage, exponential, tail, uniform, update_norm_stats

BATCHES = [torch.randn(16, 3, generator=torch.Generator().manual_seed(i)) for i in range(4)]


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def trained(make, steps=5):
    model = net()
    average = make(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for step in range(steps):
        optimizer.zero_grad()
        model(BATCHES[step % 4]).square().mean().backward()
        optimizer.step()
        average.update()
    return model, average


def evaluate(model):
    model.eval()
    with torch.no_grad():
        return torch.cat([model(b) for b in BATCHES])


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def swad(model):
    return SWAD(model, converge=1)


MAKE = {
    "running": lambda m: RunningAverage(m, uniform()),
    "offloaded": lambda m: RunningAverage(m, uniform(), offload=True),
}


@pytest.mark.parametrize("make", [*MAKE.values(), swad], ids=[*MAKE, "swad"])
def test_the_model_exported_copied_saved_and_shown_is_the_one_evaluated(make, tmp_path):
    model, average = trained(make)
    if isinstance(average, SWAD):
        average.evaluated(1.0)
    training = copy.deepcopy(model.state_dict())
    with average.averaged():
        averaged = evaluate(model)
        update_norm_stats(model, BATCHES)
        evaluated = evaluate(model)
        inside = copy.deepcopy(model.state_dict())
        average.export(tmp_path / "inside.safetensors")
        saved = io.BytesIO()
        torch.save(average.state_dict(), saved)
        twin = copy.deepcopy(average)
    assert not torch.equal(averaged, evaluated)
    assert same(model.state_dict(), training)
    average.export(tmp_path / "after.safetensors")
    for name in ("inside", "after"):
        other = net(seed=1)
        other.load_state_dict(load_file(tmp_path / f"{name}.safetensors"))
        assert torch.equal(evaluate(other), evaluated)
    average.copy_to(other := net(seed=2))
    assert torch.equal(evaluate(other), evaluated)
    saved.seek(0)
    resumed = make(net(seed=3))
    resumed.load_state_dict(torch.load(saved, weights_only=True))
    for each in (average, twin, resumed):
        with each.averaged() as shown:
            assert same(shown.state_dict(), inside)
    with pytest.raises(ValueError, match="no reestimated"):
        resumed.load_state_dict({k: v for k, v in average.state_dict().items() if k != "reestimated"})


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_the_next_point_outdates_it_and_evaluating_changes_no_average(make):
    plain_model, plain = trained(make)
    model, average = trained(make)
    with average.averaged():
        update_norm_stats(model, BATCHES)
    for m, a in ((plain_model, plain), (model, average)):
        m.train()
        m(BATCHES[0])
        a.update()
    assert same(plain.averaged_model_state(), average.averaged_model_state())
    with average.averaged():
        update_norm_stats(model, BATCHES)
    average.reset()
    assert average.state_dict()["reestimated"] == [{}]


def test_each_average_has_its_own_and_nested_blocks_keep_theirs():
    model, average = trained(lambda m: RunningAverage(m, [exponential(0.5), tail(0.5), uniform()]))
    plain = [copy.deepcopy(average.averaged_model_state(which)) for which in range(3)]
    with average.averaged(0):
        update_norm_stats(model, BATCHES[:2])
        outer = copy.deepcopy(model.state_dict())
        with average.averaged(1):
            assert torch.equal(model[1].running_mean, plain[1]["module.1.running_mean"])
            update_norm_stats(model, BATCHES[2:])
            inner = copy.deepcopy(model.state_dict())
        assert same(model.state_dict(), outer)
    for which, expected in enumerate((outer, inner)):
        with average.averaged(which):
            assert same(model.state_dict(), expected)
    assert same(average.averaged_model_state(2), plain[2])


def test_what_a_block_that_raises_has_written_is_dropped():
    model, average = trained(MAKE["running"])
    before = copy.deepcopy(average.averaged_model_state())

    def fail():
        with average.averaged():
            update_norm_stats(model, BATCHES)
            raise RuntimeError("evaluation")

    with pytest.raises(RuntimeError, match="evaluation"):
        fail()
    assert same(average.averaged_model_state(), before)


def test_weights_written_in_the_block_end_with_it():
    model, average = trained(MAKE["running"])
    before = copy.deepcopy(average.averaged_model_state())
    with average.averaged():
        nn.init.zeros_(model[0].weight)
    assert same(average.averaged_model_state(), before)


@pytest.mark.parametrize("damage", ["names", "shape", "kind", "count"])
def test_re_estimated_buffers_of_another_model_are_refused(damage):
    model, average = trained(MAKE["running"])
    with average.averaged():
        update_norm_stats(model, BATCHES)
    state = copy.deepcopy(average.state_dict())
    expected = copy.deepcopy(average.averaged_model_state())
    values = state["reestimated"][0]
    if damage == "names":
        values["0.weight"] = values.pop("1.running_mean")
    elif damage == "shape":
        values["1.running_mean"] = torch.zeros(1)
    elif damage == "kind":
        values["1.running_mean"] = [0.0] * 4
    else:
        state["reestimated"].append({})
    with pytest.raises(ValueError, match="re-estimated buffers"):
        average.load_state_dict(state)
    assert same(average.averaged_model_state(), expected)
