"""Averages of models sharded by FSDP2 on real processes: evaluations between and inside them, exchange with whole models."""

import datetime
import sys
import warnings

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import SGD
from torch.optim.swa_utils import AveragedModel

from lookaround import Lookahead, Lookaround
from lookaround.averaging import SWAD, RunningAverage, exponential, uniform
from reference.processes import run_on_each


@pytest.mark.parametrize("size", [1, 2])
def test_averages_of_sharded_models(size, tmp_path):
    run_on_each(__file__, size, str(tmp_path))


def network():
    # Three rows on two processes are shards of unequal size; of the one row of the last layer, one process has nothing.
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 1, bias=False)).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.arange(weight.numel()).view_as(weight))
    return model


def sharded(mesh, *, layers=1):
    """A network with its first layers sharded each by itself, and its weights as an optimizer holds them.

    What is left over belongs to the outermost module, which keeps it gathered after a forward pass.
    """
    model = network()
    for layer in model[:layers]:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model, list(model.parameters())


def put(weights, value):
    with torch.no_grad():
        for weight in weights:
            weight.fill_(value)


def held(weights):
    """The one value of all weights."""
    (value,) = {v for w in weights for v in w.detach().full_tensor().flatten().tolist()}
    return value


def evaluate(model):
    """12 v² where all weights are v; leaves the last layer's weights gathered."""
    with torch.no_grad():
        return model(torch.ones(1, 4, dtype=torch.float64)).item()


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def mean_of(average):
    return average.state_dict()["averages"][0]["means"][0]


def evaluations_between_and_inside(mesh, _):
    for layers in (0, 1, 2):
        model, weights = sharded(mesh, layers=layers)
        average = RunningAverage(model, [uniform(), exponential(0.75)])
        for value in (1.0, 5.0):
            put(weights, value)
            average.update()
            assert evaluate(model) == 12 * value**2
        with average.averaged():
            assert evaluate(model) == 12 * 3.0**2
            with average.averaged(1):
                assert evaluate(model) == 12 * 2.0**2
            assert evaluate(model) == 12 * 3.0**2
        assert held(weights) == 5.0
        assert evaluate(model) == 12 * 5.0**2
        assert all(isinstance(v, DTensor) for v in mean_of(average).values())


def made_after_an_evaluation(mesh, _):
    model, weights = sharded(mesh)
    put(weights, 2.0)
    evaluate(model)
    with pytest.raises(ValueError, match="cannot hold DTensors"):
        RunningAverage(model, uniform(), offload=True)
    evaluate(model)
    average = RunningAverage(model, uniform())
    evaluate(model)
    average.update()
    assert held(mean_of(average).values()) == 2.0


def forward_that_fails_inside(mesh, _):
    model, weights = sharded(mesh, layers=0)
    average = RunningAverage(model, uniform())
    for value in (1.0, 3.0):
        put(weights, value)
        average.update()

    def fail(*_):
        raise KeyError("inside the forward pass")

    model[1].register_forward_hook(fail)
    with pytest.raises(KeyError, match="inside the forward pass"), average.averaged():
        evaluate(model)
    assert held(weights) == 3.0


def swad(mesh, _):
    model, weights = sharded(mesh)
    average = SWAD(model, converge=1, tolerance=2)
    for value in (1.0, 2.0, 3.0):
        put(weights, value)
        average.update()
        assert evaluate(model) == 12 * value**2
        average.evaluated(1.0)
    with average.averaged():
        assert evaluate(model) == 12 * 2.0**2
    assert held(weights) == 3.0
    assert evaluate(model) == 12 * 3.0**2


def copies_and_files_after_an_evaluation(mesh, folder):
    (model, weights), (other, others), plain = sharded(mesh), sharded(mesh), network()
    average = RunningAverage(model, uniform())
    for value in (1.0, 3.0):
        put(weights, value)
        average.update()
    evaluate(model)
    average.export(f"{folder}/average-{dist.get_world_size()}.safetensors")
    evaluate(other)
    average.copy_to(other)
    assert evaluate(other) == 12 * 2.0**2
    assert held(others) == 2.0
    average.copy_to(plain)
    assert evaluate(plain) == 12 * 2.0**2
    evaluate(model)
    average.copy_to(model)
    assert evaluate(model) == 12 * 2.0**2
    dist.barrier()
    exported = load_file(f"{folder}/average-{dist.get_world_size()}.safetensors")
    assert exported.keys() == plain.state_dict().keys()
    assert all(torch.equal(exported[name], value) for name, value in plain.state_dict().items())


def averages_from_whole_to_sharded_and_back(mesh, _):
    models = [network(), sharded(mesh)[0]]
    for source, target in (models, models[::-1]):
        first, second = RunningAverage(source, uniform()), RunningAverage(target, uniform())
        first.update()
        move(source)
        first.update()
        move(source)
        with first.averaged():
            state = first.state_dict()
            evaluate(target)
            second.load_state_dict(state)
        same(source.state_dict(), target.state_dict())
        assert type(mean_of(second)["0.weight"]) is type(target[0].weight.data)
        for average, model in ((first, source), (second, target)):
            move(model)
            average.update()
        same(mean_of(first), mean_of(second))


def move(model):
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3.0)


def same(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(whole(first[name]), whole(second[name])) for name in first)


def averaged_model_of_the_whole_one(mesh, _):
    plain, (model, _) = network(), sharded(mesh)
    theirs = AveragedModel(plain)
    theirs.update_parameters(plain)
    average = RunningAverage(model, uniform())
    average.load_averaged_model_state(theirs.state_dict())
    same(mean_of(average), plain.state_dict())


def step(optimizer, weights, gradient):
    for weight in weights:
        weight.grad = torch.full_like(weight, gradient)
    optimizer.step()


def lookaround_that_knows_its_model(mesh, _):
    model, weights = sharded(mesh)
    put(weights, 1.0)
    optimizer = Lookaround(SGD(weights, lr=1.0), 2, k=2, model=model)
    step(optimizer, weights, -1.0)
    step(optimizer, weights, -3.0)
    for _ in range(2):
        assert evaluate(model) == 12 * 2.0**2
        with optimizer.averaged():
            assert evaluate(model) == 12 * 3.0**2
    assert evaluate(model) == 12 * 2.0**2
    optimizer.average()
    assert evaluate(model) == 12 * 3.0**2


def lookahead_that_does_not(mesh, _):
    model, weights = sharded(mesh)
    put(weights, 1.0)
    optimizer = Lookahead(SGD(weights, lr=1.0), k=2, alpha=0.5)
    step(optimizer, weights, -2.0)
    assert evaluate(model) == 12 * 3.0**2
    model.reshard()
    with optimizer.averaged():
        assert evaluate(model) == 12 * 2.0**2
        model.reshard()
    assert evaluate(model) == 12 * 3.0**2


def fsdp1(mesh, _):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = FullyShardedDataParallel(network(), use_orig_params=True, device_id=torch.device("cpu"))
    if mesh.size() == 1:
        average = RunningAverage(model, uniform())
        average.update()
        same(mean_of(average), network().state_dict())
        return
    for average in (lambda: RunningAverage(model, uniform()), lambda: SWAD(nn.Sequential(model))):
        with pytest.raises(
            ValueError, match=r"is sharded by FullyShardedDataParallel \(FSDP1\).*fully_shard \(FSDP2\)"
        ):
            average()


CHECKS = [
    evaluations_between_and_inside,
    made_after_an_evaluation,
    forward_that_fails_inside,
    swad,
    copies_and_files_after_an_evaluation,
    averages_from_whole_to_sharded_and_back,
    averaged_model_of_the_whole_one,
    lookaround_that_knows_its_model,
    lookahead_that_does_not,
    fsdp1,
]


def main(rank, size, folder):
    store = f"file://{folder}/store"
    dist.init_process_group(
        "gloo", init_method=store, rank=rank, world_size=size, timeout=datetime.timedelta(minutes=5)
    )
    mesh = init_device_mesh("cpu", (size,))
    for check in CHECKS:
        check(mesh, folder)
    dist.barrier()  # no process leaves while another still talks to it
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
