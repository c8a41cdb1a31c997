"""What each process of `test_resume.py` runs: a training saved by some processes and gone on with by others."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from equality_on_each import BATCH, INNERS, OUTERS, K, compare, minibatch, network, whole
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lookaround import Lookahead, Lookaround
from lookaround.distributed import Checkpoints, load_run, save_run

BRANCHES, STOP, END = 4, 7, 12
# At STOP its first two averages have been sent, and the second has not been taken in.
OVERLAP = {"overlap": 2, "k": 3}
SETTINGS = {"plain": {}, **OUTERS, "overlap": OVERLAP, "overlap, snoo": OVERLAP | OUTERS["snoo"]}
INNERS = {**INNERS, "lookahead": lambda p: Lookahead(torch.optim.SGD(p, lr=0.05, momentum=0.9), k=3)}


def build(inner: str, sharded: bool = False, mesh=None, **settings):
    model = network(buffers=not sharded, dtype=torch.float64)
    if sharded:
        for layer in (model[0], model[3], model):
            fully_shard(layer, mesh=mesh["dp_shard"])
    settings = {"k": K, **settings}
    return model, Lookaround(INNERS[inner](model.parameters()), BRANCHES, model=model, mesh=mesh, **settings)


def steps(model, optimizer, first: int, last: int, part: int = 0, parts: int = 1) -> None:
    for step in range(first, last):
        for branch in optimizer.around():
            inputs, labels = minibatch(branch, step, torch.float64, part, parts)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()


def end(model, optimizer) -> list[torch.Tensor]:
    optimizer.average()
    return [whole(t).detach().clone() for t in (*model.parameters(), *model.buffers())]


def cases() -> Iterator[tuple[str, dict]]:
    yield from (("momentum", settings) for settings in SETTINGS.values())
    yield from ((inner, {}) for inner in ("adamw", "lookahead"))


def saves(rank: int, size: int, folder: str) -> None:
    mesh = init_device_mesh("cpu", (size,), mesh_dim_names=("branch",))
    for number, (inner, settings) in enumerate(cases()):
        model, optimizer = build(inner, mesh=mesh, **settings)
        steps(model, optimizer, 0, STOP)
        save_run(Checkpoints(f"{folder}/{number}"), STOP, model, optimizer)


def goes_on(rank: int, size: int, folder: str) -> None:
    """From the middle of a round, saved by any number of processes, to where one process gets without a stop."""
    mesh = init_device_mesh("cpu", (size,), mesh_dim_names=("branch",))
    for number, (inner, settings) in enumerate(cases()):
        model, optimizer = build(inner, mesh=mesh, **settings)
        assert load_run(Checkpoints(f"{folder}/{number}"), model, optimizer) == STOP
        steps(model, optimizer, STOP, END)
        expected = [None]
        if rank == 0:
            undisturbed, its_optimizer = build(inner, **settings)
            steps(undisturbed, its_optimizer, 0, END)
            expected = [end(undisturbed, its_optimizer)]
        dist.broadcast_object_list(expected)
        compare([end(model, optimizer)], expected, exact=False)


def same_placement_bit_for_bit(rank: int, size: int, folder: str) -> None:
    """Also of what a lossy wire owes."""
    mesh = init_device_mesh("cpu", (size,), mesh_dim_names=("branch",))
    for number, settings in enumerate(({}, {"wire": "bfloat16", "alpha": 0.5}, {"wire": "int8"} | OVERLAP)):
        ends = []
        for stopped in (False, True):
            model, optimizer = build("adamw", mesh=mesh, **settings)
            steps(model, optimizer, 0, STOP)
            if stopped:
                save_run(Checkpoints(f"{folder}/{number}"), STOP, model, optimizer)
                model, optimizer = build("adamw", mesh=mesh, **settings)
                load_run(Checkpoints(f"{folder}/{number}"), model, optimizer)
            steps(model, optimizer, STOP, END)
            ends.append(end(model, optimizer))
        compare(ends[:1], ends[1:], exact=True)


def saves_sharded(rank: int, size: int, folder: str) -> None:
    mesh = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("branch", "dp_shard"))
    model, optimizer = build("adamw", True, mesh)
    steps(model, optimizer, 0, STOP, mesh.get_local_rank("dp_shard"), size // 2)
    save_run(Checkpoints(folder), STOP, model, optimizer)


def goes_on_sharded(rank: int, size: int, folder: str, rows: int) -> None:
    mesh = init_device_mesh("cpu", (rows, size // rows), mesh_dim_names=("branch", "dp_shard"))
    model, optimizer = build("adamw", True, mesh)
    assert load_run(Checkpoints(folder), model, optimizer) == STOP
    steps(model, optimizer, STOP, END, mesh.get_local_rank("dp_shard"), size // rows)
    undisturbed = network(buffers=False, dtype=torch.float64)
    its_optimizer = Lookaround(INNERS["adamw"](undisturbed.parameters()), BRANCHES, K, model=undisturbed)
    steps(undisturbed, its_optimizer, 0, END)
    compare([end(model, optimizer)], [end(undisturbed, its_optimizer)], exact=False)


def refuses(rank: int, size: int, folder: str) -> None:
    model, optimizer = build("momentum")
    for _ in optimizer.around():
        model(torch.randn(BATCH, 4, dtype=torch.float64)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        with pytest.raises(ValueError, match="save after the loop over around"):
            save_run(Checkpoints(folder), 1, model, optimizer)
    with optimizer.averaged(), pytest.raises(ValueError, match="part_state_dict"):
        save_run(Checkpoints(folder), 1, model, optimizer)
    save_run(Checkpoints(folder), 1, model, optimizer)
    other = torch.nn.Linear(4, 3)
    with pytest.raises(ValueError, match=r"another model: 0\.bias"):
        load_run(
            Checkpoints(folder),
            other,
            Lookaround(torch.optim.SGD(other.parameters(), lr=0.1), BRANCHES, K, model=other),
        )


def main(rank: int, most: int, store, folder: str) -> None:
    among = (
        (1, refuses, "refused"),
        (3, saves, "three"),
        (1, goes_on, "three"),
        (4, goes_on, "three"),
        (1, saves, "one"),
        (2, goes_on, "one"),
        (2, same_placement_bit_for_bit, "same"),
        (4, saves_sharded, "sharded"),
        (2, goes_on_sharded, "sharded", 2),
        (2, goes_on_sharded, "sharded", 1),
    )
    for index, (few, action, name, *words) in enumerate(among):
        own = dist.PrefixStore(str(index), store)
        if rank < few:
            dist.init_process_group("gloo", store=own, rank=rank, world_size=few, timeout=timedelta(minutes=2))
            action(rank, few, f"{folder}/{name}", *words)
            dist.destroy_process_group()
            own.set(f"done {rank}", "")
            print(f"{action.__name__} among {few}\n", end="", flush=True)
        own.wait([f"done {other}" for other in range(few)], timedelta(minutes=5))
