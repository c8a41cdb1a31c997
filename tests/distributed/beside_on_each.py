"""What each process of `test_beside.py` runs: what stands beside branches over processes, held against one process with all of them."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from equality_on_each import K, compare, minibatch, network, values, whole
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.optim import SGD

from lookaround import Lookahead, Lookaround
from lookaround.averaging import FoldedSWA, RunningAverage, SwitchEMA, exponential, lawa, uniform, update_norm_stats
from lookaround.landscape import Line, Plane, evaluate_grid, flatten
from lookaround.landscape.probe import Probe

PASSES = 6 * K + 1
RULES = (uniform(), exponential(0.7), lawa(2))


def sgd(model: nn.Module) -> SGD:
    return SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)


def train(model, optimizer, passes: int = PASSES, part: int = 0, parts: int = 1) -> Iterator[int]:
    """Yields after every pass over the branches."""
    dtype = next(model.parameters()).dtype
    for step in range(passes):
        for branch in optimizer.around():
            inputs, labels = minibatch(branch, step, dtype, part, parts)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
        yield step


def everywhere(make, size: int) -> tuple[list, list]:
    """What ``make(mesh settings)`` yields here with branches over processes, and what it yields with all of them in one."""
    told: list = [None]
    if dist.get_rank() == 0:
        told = [[*make({})]]
    dist.broadcast_object_list(told)
    mesh = init_device_mesh("cpu", (size,), mesh_dim_names=("branch",))
    return [*make({"mesh": mesh})], told[0]


def lookahead_inside(settings) -> Iterator[list[torch.Tensor]]:
    model = network()
    inner = Lookahead(sgd(model), k=3, alpha=0.5, inner_state="interpolate")
    optimizer = Lookaround(inner, 4, K, model=model, alpha=0.8, **settings)
    for step in train(model, optimizer):
        with optimizer.averaged():
            yield values(model, counted=step % K == K - 1)


def running_averages(settings) -> Iterator[list[torch.Tensor]]:
    """Points are the averages of the branches, in the middle of a round too."""
    model = network()
    optimizer = Lookaround(sgd(model), 4, K, model=model, **settings)
    average = RunningAverage(model, RULES, point=optimizer.averaged)
    for _ in train(model, optimizer):
        average.update()
        for which in range(len(RULES)):
            with average.averaged(which):
                yield values(model, counted=False)


def folds_of_swa(settings) -> Iterator[list[torch.Tensor]]:
    """Averages that are written into the model, from which all branches go on."""
    model = network()
    optimizer = Lookaround(sgd(model), 4, K, model=model, alpha=0.5, **settings)
    swa = FoldedSWA(model, iterations=12, cycle=3, folds=2, point=optimizer.averaged, restart=optimizer.restart)
    for _ in train(model, optimizer, 12):
        swa.step()
        with optimizer.averaged():
            yield values(model, counted=False)


def procedures_while_averages_are_under_way(settings) -> Iterator[list[torch.Tensor]]:
    """Averages over time that write themselves into the model where an average of the branches is on its way."""
    for make in (
        lambda model, beside: FoldedSWA(model, iterations=12, cycle=2, folds=2, **beside),
        lambda model, beside: SwitchEMA(model, every=6, rule=exponential(0.7), **beside),
    ):
        model = network()
        optimizer = Lookaround(sgd(model), 4, 4, model=model, alpha=0.5, overlap=3, **settings)
        procedure = make(model, {"point": optimizer.averaged, "restart": optimizer.restart})
        for _ in train(model, optimizer, 12):
            procedure.step()
            with optimizer.averaged():
                yield values(model, counted=False)


def check_what_is_bit_for_bit(size: int) -> None:
    """Where no row but the first holds several of the four branches."""
    for make in (lookahead_inside, running_averages, folds_of_swa, procedures_while_averages_are_under_way):
        compare(*everywhere(make, size), exact=True)


class Layers(nn.Module):
    """Two batch norms: what the second sees depends on what the first does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3), nn.BatchNorm1d(3))
        self.double()

    def forward(self, inputs):
        return self.layers(inputs)


def check_norm_statistics_are_pooled(size: int) -> None:
    """Each process gives the batches that it has; the statistics are those of one process that has them all."""
    batches = [minibatch(branch, step, torch.float64)[0] for branch in range(4) for step in range(3)]
    mesh = init_device_mesh("cpu", (size,), mesh_dim_names=("branch",))
    model = Layers()
    optimizer = Lookaround(sgd(model), 4, K, model=model, mesh=mesh)
    for _ in train(model, optimizer):
        pass
    with optimizer.averaged():
        trained = {name: value.clone() for name, value in model.state_dict().items()}
        for exact in (False, True):
            model.load_state_dict(trained)
            update_norm_stats(model, batches[dist.get_rank() :: size], exact=exact)
            compare([values(model, counted=True)], [statistics_of_one(trained, batches, exact)], exact=False)


def statistics_of_one(weights, batches, exact: bool) -> list[torch.Tensor]:
    """Where all batches are the first process's."""
    alone = Layers()
    alone.load_state_dict(weights)
    update_norm_stats(alone, batches if dist.get_rank() == 0 else [b[:0] for b in batches], exact=exact)
    return values(alone, counted=True)


def check_grid_points_are_shared(size: int) -> None:
    """Around the average of the branches, which is in every process's model; each measures its share of the points."""
    mesh = init_device_mesh("cpu", (size,), mesh_dim_names=("branch",))
    model = network()
    optimizer = Lookaround(sgd(model), 4, K, model=model, mesh=mesh)
    seen = []
    for _ in train(model, optimizer):
        with optimizer.averaged():
            seen.append(flatten(model))
    plane, (xs, ys) = Plane.through(*seen[::6]), ((-1.0, 0.0, 0.5), (0.0, 1.0))
    data, calls = [minibatch(branch, 0, torch.float32) for branch in range(2)], []

    def criterion(outputs, targets):
        calls.append(len(targets))
        return nn.functional.cross_entropy(outputs, targets, reduction="sum")

    with optimizer.averaged():
        grid = evaluate_grid(model, plane, xs, ys, batches=data, criterion=criterion)
    assert len(calls) == 2 * len(range(dist.get_rank(), 6, size))
    probe = Probe(model, data)
    probe.span(plane.rows)
    for (column, row), loss in zip([(x, y) for y in ys for x in xs], grid.loss.flatten().tolist(), strict=True):
        probe.move(plane.weights(column, row))
        assert probe.measure().loss == loss


def sharded_over(mesh, model: nn.Module) -> nn.Module:
    for layer in (*[m for m in model.modules() if isinstance(m, nn.Linear)], model):
        fully_shard(layer, mesh=mesh["dp_shard"])
    return model


def settings_on_shards() -> dict:
    """Two rows of two processes."""
    return {"mesh": init_device_mesh("cpu", (2, 2), mesh_dim_names=("branch", "dp_shard"))}


def own_part(mesh=None) -> dict:
    return {} if mesh is None else {"part": mesh.get_local_rank("dp_shard"), "parts": 2}


def check_lookahead_on_shards(size: int) -> None:
    """It has no branches to share out: each row goes its way, and the average is arithmetic on the shards a process has."""

    def run(mesh=None):
        model = network(buffers=False, dtype=torch.float64)
        optimizer = Lookahead(sgd(model if mesh is None else sharded_over(mesh, model)), k=3, alpha=0.5)
        for step in range(PASSES):
            inputs, labels = minibatch(0, step, torch.float64, **own_part(mesh))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            with CommDebugMode() as said:
                optimizer.step()
            assert not said.get_total_counts()
            with optimizer.averaged():
                yield values(model, counted=False)

    if size == 4:
        compare([*run(**settings_on_shards())], [*run()], exact=False)


def check_running_averages_on_shards(size: int) -> None:
    """A point in the middle of a round is sent over "branch", one at a round's end is there; the average is arithmetic on shards."""

    def run(mesh=None):
        model = network(buffers=False, dtype=torch.float64)
        optimizer = Lookaround(sgd(model if mesh is None else sharded_over(mesh, model)), 2, K, model=model, mesh=mesh)
        average = RunningAverage(model, RULES, point=optimizer.averaged)
        for step in train(model, optimizer, **own_part(mesh)):
            with CommDebugMode() as said:
                average.update()
            assert bool(said.get_total_counts()) == (mesh is not None and step % K < K - 1)
            with average.averaged(2):
                yield values(model, counted=False)
        for track in average.state_dict()["averages"]:
            assert all(isinstance(t, DTensor) == (mesh is not None) for mean in track["means"] for t in mean.values())

    if size == 4:
        told = [[*run()] if dist.get_rank() == 0 else None]
        dist.broadcast_object_list(told)
        compare([*run(**settings_on_shards())], told[0], exact=False)


def check_a_grid_of_shards_is_refused(size: int) -> None:
    """A plane through one process's shards would be another one on each."""
    if size == 4:
        (mesh,) = settings_on_shards().values()
        model = sharded_over(mesh, network(buffers=False))
        with pytest.raises(ValueError, match=r"0\.weight is sharded over 2 processes.*full_state_dict=True"):
            flatten(model)
        with pytest.raises(ValueError, match="sharded over 2 processes"):
            flatten([*model.parameters()])
        vector = flatten(network(buffers=False))
        line = Line.between(vector, vector + 1)
        with pytest.raises(ValueError, match=r"0\.weight is sharded"):
            evaluate_grid(model, line, (0.0, 1.0), batches=[minibatch(0, 0, torch.float32)])


def check_norm_statistics_on_shards(size: int) -> None:
    if size != 4:
        return
    (mesh,) = settings_on_shards().values()
    batches = [minibatch(branch, step, torch.float64)[0] for branch in range(4) for step in range(3)]
    model = sharded_over(mesh, Layers())
    optimizer = Lookaround(sgd(model), 2, K, model=model, mesh=mesh)
    for _ in train(model, optimizer, **own_part(mesh)):
        pass
    with optimizer.averaged():
        trained = {name: whole(value).clone() for name, value in model.state_dict().items()}
        buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        for exact in (False, True):
            for buffer, before in buffers:
                buffer.copy_(before)
            update_norm_stats(model, batches[dist.get_rank() :: size], exact=exact)
            compare([values(model, counted=True)], [statistics_of_one(trained, batches, exact)], exact=False)


def main(rank: int, most: int, store, *only: str) -> None:
    """All checks among all processes, and then among all but one."""
    for size in (most, most - 1):
        if rank < size:
            own = dist.PrefixStore(str(size), store)
            dist.init_process_group("gloo", store=own, rank=rank, world_size=size, timeout=timedelta(minutes=2))
            for name, check in list(globals().items()):
                if name.startswith("check_") and (not only or name in only):
                    check(size)
            dist.barrier()
            dist.destroy_process_group()
            print(f"checked among {size}\n", end="", flush=True)
