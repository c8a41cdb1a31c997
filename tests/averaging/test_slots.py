"""Own names under every wrapper, export, and sharded parameters: what people stumbled over elsewhere."""

import copy
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, load_model
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.optim.swa_utils import AveragedModel

from lookaround.averaging import SWAD, FoldedSWA, RunningAverage, SnapshotCollector, exponential, uniform
from lookaround.averaging.slots import find_slots


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))


class HasModule(nn.Module):
    """A model with a child that is really called ``module``."""

    def __init__(self):
        super().__init__()
        self.module = nn.Linear(4, 2)

    def forward(self, x):
        return self.module(x)


@pytest.fixture
def group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def names(model):
    return [s.name for s in find_slots(model)]


def wrapped_parts():
    model = net()
    model[0] = checkpoint_wrapper(model[0])
    model[2] = torch.compile(model[2], backend="eager")
    return model


@pytest.mark.parametrize(
    "wrap",
    [
        lambda: torch.compile(net(), backend="eager"),
        lambda: nn.DataParallel(net()),
        lambda: AveragedModel(net()),
        wrapped_parts,
        lambda: torch.compile(wrapped_parts(), backend="eager"),
    ],
)
def test_wrappers_leave_no_trace_in_names(wrap):
    assert names(wrap()) == list(net().state_dict())


def test_the_names_of_ddp_around_compile_are_the_models_own(group):
    model = nn.parallel.DistributedDataParallel(torch.compile(net(), backend="eager"))
    assert names(model) == list(net().state_dict())
    assert find_slots(model)[0].wrapped == ["module._orig_mod.0.weight"]


def test_a_child_called_module_keeps_its_name(group):
    assert names(HasModule()) == ["module.weight", "module.bias"]
    assert names(nn.parallel.DistributedDataParallel(HasModule())) == ["module.weight", "module.bias"]


def test_an_average_of_a_wrapped_model_exports_what_the_plain_model_loads(group, tmp_path):
    model = nn.parallel.DistributedDataParallel(torch.compile(net(), backend="eager"))
    average = RunningAverage(model, exponential(0.5))
    for _ in range(3):
        model(torch.randn(8, 4)).sum().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
        average.update()
    average.export(tmp_path / "average.safetensors")
    plain, copied = net(), net()
    plain.load_state_dict(load_file(tmp_path / "average.safetensors"))
    average.copy_to(copied)
    with average.averaged():
        inside = copy.deepcopy(model.module._orig_mod.state_dict())
    for key, value in inside.items():
        assert torch.equal(plain.state_dict()[key], value)
        assert torch.equal(copied.state_dict()[key], value)
    unwrapped = RunningAverage(net(), exponential(0.5))
    unwrapped.load_state_dict(average.state_dict())
    theirs = AveragedModel(model)
    theirs.load_state_dict(average.averaged_model_state())
    assert torch.equal(theirs.module.module._orig_mod[2].weight, inside["2.weight"])
    average.load_averaged_model_state(theirs.state_dict())
    assert average.count == 3


WRAPS = {
    "plain": lambda m: m,
    "compiled": lambda m: torch.compile(m, backend="eager"),
    "ddp": nn.parallel.DistributedDataParallel,
    "compiled ddp": lambda m: torch.compile(nn.parallel.DistributedDataParallel(m), backend="eager"),
}


@pytest.mark.parametrize("make", [net, HasModule])
@pytest.mark.parametrize("ours", WRAPS)
@pytest.mark.parametrize("theirs", WRAPS)
def test_a_state_of_averaged_model_loads_whatever_wraps_the_model(group, make, ours, theirs):
    average = RunningAverage(WRAPS[ours](make()), uniform())
    other = make()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 1
    state = {**AveragedModel(WRAPS[theirs](other)).state_dict(), "n_averaged": torch.tensor(1)}
    average.load_averaged_model_state(state)
    mean = average.state_dict()["averages"][0]["means"][0]
    assert all(torch.equal(mean[name], value) for name, value in other.named_parameters())
    state.popitem()
    with pytest.raises(ValueError, match="the AveragedModel's state does not match: missing: "):
        average.load_averaged_model_state(state)


def test_a_state_of_averaged_model_with_a_wrapper_inside_loads(group):
    model = nn.Sequential(nn.parallel.DistributedDataParallel(nn.Linear(4, 2)), wrapped_parts())
    average = RunningAverage(model, uniform())
    average.load_averaged_model_state({**AveragedModel(model).state_dict(), "n_averaged": torch.tensor(1)})
    assert torch.equal(average.state_dict()["averages"][0]["means"][0]["0.weight"], model[0].module.weight)


def test_export_has_the_models_dtypes_tied_weights_once_and_no_unsaved_buffers(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).to(torch.bfloat16)
    model[1].weight = model[0].weight
    model.register_buffer("scratch", torch.zeros(1), persistent=False)
    average = RunningAverage(model, uniform())
    average.update()
    average.export(tmp_path / "tied.safetensors")
    with safe_open(tmp_path / "tied.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "1.weight": "0.weight"}
        assert set(file.keys()) == {"0.weight", "0.bias", "1.bias"}
        assert file.get_tensor("0.weight").dtype == torch.bfloat16
    other = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).to(torch.bfloat16)
    other[1].weight = other[0].weight
    assert load_model(other, tmp_path / "tied.safetensors") == (set(), [])
    assert torch.equal(other[0].weight, model[0].weight)


def test_a_failed_export_leaves_the_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "average.safetensors"
    path.write_bytes(b"before")
    average = RunningAverage(net(), uniform())
    with pytest.raises(ValueError, match="no point"):
        average.export(path)
    average.update()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        average.export(path)
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["average.safetensors"]


def test_a_model_that_lost_a_tensor_is_an_error():
    model = net()
    average = RunningAverage(model, uniform())
    del model[0].bias
    with pytest.raises(ValueError, match=r"no longer has a tensor '0\.bias'"):
        average.update()


def test_a_flat_parameter_is_an_error():
    model = nn.Module()
    model.register_parameter("_flat_param", nn.Parameter(torch.zeros(3)))
    with pytest.raises(ValueError, match="use_orig_params=True"):
        RunningAverage(model, uniform())


def test_dtensors_are_averaged_shard_by_shard(group, tmp_path):
    plain, sharded = net(), net()
    mesh = init_device_mesh("cpu", (1,))
    fully_shard(sharded, mesh=mesh)
    averages = [RunningAverage(m, [uniform(), exponential(0.9)]) for m in (plain, sharded)]
    torch.manual_seed(1)
    for _ in range(4):
        inputs = torch.randn(8, 4)
        for model, average in zip((plain, sharded), averages, strict=True):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            model(inputs).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            average.update()
    mean = averages[1].state_dict()["averages"][0]["means"][0]["0.weight"]
    assert isinstance(mean, torch.distributed.tensor.DTensor)
    before = sharded[0].weight.full_tensor().detach().clone()
    for which in range(2):
        averages[1].export(tmp_path / "sharded.safetensors", which)
        averages[0].export(tmp_path / "plain.safetensors", which)
        expected, got = load_file(tmp_path / "plain.safetensors"), load_file(tmp_path / "sharded.safetensors")
        assert expected.keys() == got.keys()
        for key, value in expected.items():
            torch.testing.assert_close(got[key], value)
    with averages[1].averaged():
        torch.testing.assert_close(sharded[0].weight.full_tensor(), mean.full_tensor())
    assert torch.equal(sharded[0].weight.full_tensor(), before)
    resumed = RunningAverage(sharded, [uniform(), exponential(0.9)])
    resumed.load_state_dict(averages[1].state_dict())
    averages[1].update()
    resumed.update()
    again = resumed.state_dict()["averages"][1]["means"][0]["0.weight"]
    assert torch.equal(
        again.full_tensor(), averages[1].state_dict()["averages"][1]["means"][0]["0.weight"].full_tensor()
    )
    with pytest.raises(ValueError, match="cannot hold DTensors"):
        RunningAverage(sharded, uniform(), offload=True)


def test_every_collector_uses_own_names():
    compiled = torch.compile(net(), backend="eager")
    optimizer = torch.optim.SGD(compiled.parameters(), lr=0.1)
    collector = SnapshotCollector(compiled, torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 1))
    collector.collect()
    assert list(collector.snapshots[0]) == names(net())
    assert isinstance(collector.ensemble().members[0], nn.Sequential)
    swad = SWAD(compiled)
    swad.update()
    swa = FoldedSWA(compiled, iterations=1, cycle=1)
    swa.step()
    floating = [n for n, v in net().state_dict().items() if v.is_floating_point()]
    assert sorted(swad.state_dict()["segments"][0]["mean"]) == sorted(floating)
    assert sorted(swa.state_dict()["average"]["averages"][0]["means"][0]) == sorted(floating)
