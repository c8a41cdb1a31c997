"""What each process of `test_equality.py` runs: the loop over its own branches beside one process's loop over all of them."""

import warnings
from collections.abc import Iterator
from datetime import timedelta
from functools import cache
from itertools import product

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Adam, AdamW

from lookaround import Lookaround
from lookaround.distributed import BranchBatches, keyed_generator

K, SAMPLES, BATCH = 2, 32, 8
# Rounds of every training: by default, and under the marker.
FEW, MANY = 6, 20
INNERS = {
    "momentum": lambda p: SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adamw": lambda p: AdamW(p, lr=0.01, weight_decay=0.1),
}
OUTERS = {
    "alpha": {"alpha": 0.5},
    "snoo": {"outer": lambda p: SGD(p, lr=0.7, momentum=0.9, nesterov=True)},
    "adam": {"outer": lambda p: Adam(p, lr=0.01)},
    "interpolate": {"alpha": 0.8, "inner_state": "interpolate"},
    "reset": {"inner_state": "reset"},
}
# k where averages are under way while the next round has begun.
OVERLAPS = {"late": 2, "late snoo": 3, "late alpha": lambda t: [4, 1, 3][t % 3]}
SETTINGS = {
    **OUTERS,
    "plain": {},
    "late": {"overlap": 1},
    "late snoo": {"overlap": 2, "inner_state": "reset"} | OUTERS["snoo"],
    "late alpha": {"overlap": 3, "alpha": 0.5},
}


class Scaled(nn.Module):
    """Has buffers of every kind: averaged ones, a counter, a flag, a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(5)
        self.register_buffer("seen", torch.tensor(0))
        self.register_buffer("any", torch.tensor(False))
        self.register_buffer("mask", torch.tensor([1.0, float("inf"), 2.0]))

    def forward(self, inputs):
        self.seen += len(inputs)
        self.any |= bool((inputs > 2).any())
        return self.norm(inputs)


def network(buffers: bool = True, dtype=torch.float32) -> nn.Module:
    torch.manual_seed(0)
    middle = Scaled() if buffers else nn.LayerNorm(5)
    return nn.Sequential(nn.Linear(4, 5), middle, nn.Tanh(), nn.Linear(5, 3)).to(dtype)


@cache
def minibatch(branch: int, step: int, dtype, part: int = 0, parts: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """This process's part of a branch's minibatch, whose noise is drawn for all of it."""
    inputs = torch.randn(SAMPLES, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    labels = inputs[:, :3].argmax(1)
    epoch, index = divmod(step, SAMPLES // BATCH)
    own = BranchBatches(SAMPLES, BATCH, seed=0, branch=branch, part=part, parts=parts)
    own.set_epoch(epoch)
    chosen = [*own][index]
    noise = torch.randn(BATCH, 4, generator=keyed_generator(seed=0, branch=branch, step=step), dtype=torch.float64)
    share = BATCH // parts
    return (inputs[chosen] + 0.1 * noise[part * share : (part + 1) * share]).to(dtype), labels[chosen]


def train(model, optimizer, rounds: int, forward=None, *, part: int = 0, parts: int = 1) -> Iterator[int]:
    """The loop of the README, the same on any number of processes; yields after every pass."""
    dtype = next(model.parameters()).dtype
    for step in range(rounds * K):
        for branch in optimizer.around():
            inputs, labels = minibatch(branch, step, dtype, part, parts)
            optimizer.zero_grad()
            nn.functional.cross_entropy((forward or model)(inputs), labels).backward()
            optimizer.step()
        yield step


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def values(model, counted: bool) -> list[torch.Tensor]:
    """Weights and buffers; in the middle of a round counters and flags are each branch's own."""
    averaged = [t for name, t in model.named_buffers() if counted or "running" in name]
    return [whole(t).detach().clone() for t in (*model.parameters(), *averaged)]


def check_rows(size: int, rounds: int) -> None:
    """A row of one process each: bit for bit where no row but the first has several branches."""
    mesh = init_device_mesh("cpu", (size,), mesh_dim_names=("branch",))
    for branches in range(size, 5):
        for inner in INNERS:
            fixed = branches - size <= 1
            dtype = torch.float32 if fixed else torch.float64
            model = network(dtype=dtype)
            optimizer = Lookaround(INNERS[inner](model.parameters()), branches, K, model=model, mesh=mesh)
            got = [*averages(model, optimizer, train(model, optimizer, rounds))]
            want = reference(branches, inner, dtype, rounds)
            assert len(got) == len(want) == rounds * K
            compare(got, want, exact=fixed)


def reference(*training, **settings) -> list[list[torch.Tensor]]:
    """What one process with all branches gets: the first one trains, the others are told."""
    told = [alone(*training, **settings) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(told)
    return told[0]


@cache
def alone(
    branches: int, inner: str, dtype, rounds: int, k=K, buffers: bool = True, counted: bool = True, name: str = "plain"
):
    """One process's training, for all numbers of processes that are held against it."""
    model = network(buffers, dtype)
    optimizer = Lookaround(INNERS[inner](model.parameters()), branches, k, model=model, **SETTINGS[name])
    return [*averages(model, optimizer, train(model, optimizer, rounds), counted)]


def averages(model, optimizer, loop: Iterator[int], counted: bool = True) -> Iterator[list[torch.Tensor]]:
    """After every pass, in the middle of a round too, what the average gives."""
    for step in loop:
        with optimizer.averaged():
            yield values(model, counted=counted and step % K == K - 1)


def compare(got, want, *, exact: bool) -> None:
    for step, (ours, theirs) in enumerate(zip(got, want, strict=True)):
        if exact:
            differing = [i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if not torch.equal(a, b)]
            assert not differing, (step, differing, [(ours[i], theirs[i]) for i in differing][:2])
        else:
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def check_ddp_inside_a_branch(size: int, rounds: int) -> None:
    for rows in [r for r in (1, 2) if size % r == 0 and size // r > 1 and BATCH % (size // r) == 0]:
        mesh = init_device_mesh("cpu", (rows, size // rows), mesh_dim_names=("branch", "dp"))
        for inner in INNERS:
            branches = rows + 1
            model = network(buffers=False, dtype=torch.float64)
            ddp = DistributedDataParallel(model, process_group=mesh.get_group("dp"))
            optimizer = Lookaround(INNERS[inner](model.parameters()), branches, K, model=model, mesh=mesh)
            loop = train(model, optimizer, rounds, ddp, part=mesh.get_local_rank("dp"), parts=mesh.size(1))
            got = [*averages(model, optimizer, loop)]
            compare(got, reference(branches, inner, torch.float64, rounds, buffers=False), exact=False)


def check_fsdp_inside_a_branch(size: int, rounds: int) -> None:
    for rows in [r for r in (1, 2) if size % r == 0 and BATCH % (size // r) == 0 and size // r > 1]:
        mesh = init_device_mesh("cpu", (rows, size // rows), mesh_dim_names=("branch", "dp_shard"))
        for inner, name in product(INNERS, ("plain", "late")):
            branches = rows + 1
            model = network(buffers=False, dtype=torch.float64)
            for layer in (model[0], model[3], model):
                fully_shard(layer, mesh=mesh["dp_shard"])
            settings = {"model": model, "mesh": mesh, **SETTINGS[name]}
            optimizer = Lookaround(INNERS[inner](model.parameters()), branches, K, **settings)
            loop = train(model, optimizer, rounds, part=mesh.get_local_rank("dp_shard"), parts=mesh.size(1))
            got = [*averages(model, optimizer, loop)]
            want = reference(branches, inner, torch.float64, rounds, buffers=False, name=name)
            compare(got, want, exact=False)


def check_every_outer(size: int, rounds: int) -> None:
    mesh = init_device_mesh("cpu", (size,), mesh_dim_names=("branch",))
    for name, settings in OUTERS.items():
        model = network()
        optimizer = Lookaround(INNERS["momentum"](model.parameters()), size + 1, K, model=model, mesh=mesh, **settings)
        got = [*averages(model, optimizer, train(model, optimizer, rounds))]
        compare(got, reference(size + 1, "momentum", torch.float32, rounds, name=name), exact=True)


def check_overlap(size: int, rounds: int) -> None:
    """Averages under way come to the same bits; meanwhile the processes talk about something else."""
    mesh = init_device_mesh("cpu", (size,), mesh_dim_names=("branch",))

    def train_and_talk(model, optimizer):
        for step in train(model, optimizer, rounds):
            told = torch.tensor(step)
            dist.all_reduce(told)
            assert told == size * step
            yield step

    for name, k in OVERLAPS.items():
        model = network()
        inner = INNERS["momentum"](model.parameters())
        optimizer = Lookaround(inner, size + 1, k, model=model, mesh=mesh, **SETTINGS[name])
        got = [*averages(model, optimizer, train_and_talk(model, optimizer), counted=False)]
        want = reference(size + 1, "momentum", torch.float32, rounds, k, counted=False, name=name)
        compare(got, want, exact=True)


def check_a_branch_that_diverges(size: int, rounds: int) -> None:
    """It is left out everywhere, and goes on from the average with a healthy one's inner state, from another row if need be. An average
    that is looked at while the one that it is left out of is under way has another one's buffers in its place, too."""
    mesh = init_device_mesh("cpu", (size,), mesh_dim_names=("branch",))
    for diverging, overlap in ((0, 0), (size, 0), (0, 2), (size, 2)) if size > 1 else ():
        ends = []
        for settings in ({"mesh": mesh}, {}):
            model, seen = network(), []
            inner = INNERS["adamw"](model.parameters())
            optimizer = Lookaround(
                inner, size + 1, overlap + 1 if overlap else K, model=model, overlap=overlap, **settings
            )
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                for step in range(5 * K):
                    for branch in optimizer.around():
                        inputs, labels = minibatch(branch, step, torch.float32)
                        optimizer.zero_grad()
                        loss = nn.functional.cross_entropy(model(inputs), labels)
                        (loss * float("nan") if (branch, step) == (diverging, K) else loss).backward()
                        optimizer.step()
                    with optimizer.averaged():
                        seen.append(values(model, counted=False))
                optimizer.average()
            assert [str(w.message).partition(" has")[0] for w in caught] == [f"branch {diverging} of {size + 1}"]
            ends.append([*seen, values(model, counted=True)])
        compare(*ends, exact=True)


# Among how many processes each check is made by default; all of them are made among one, two, three and four under the marker.
USUALLY = {
    check_rows: (1, 2, 3, 4),
    check_ddp_inside_a_branch: (2, 4),
    check_every_outer: (3,),
    check_overlap: (2, 3),
    check_a_branch_that_diverges: (3,),
}


def main(rank: int, most: int, store, *all_of_them: str) -> None:
    """The checks among the first process, the first two, and so on."""
    everything = dict.fromkeys((*USUALLY, check_fsdp_inside_a_branch), range(1, most + 1))
    checks = everything if all_of_them else USUALLY
    for size in range(1, most + 1):
        if rank < size:
            own = dist.PrefixStore(str(size), store)
            dist.init_process_group("gloo", store=own, rank=rank, world_size=size, timeout=timedelta(minutes=10))
            for check in (check for check, sizes in checks.items() if size in sizes):
                check(size, MANY if all_of_them else FEW)
                print(f"{check.__name__} among {size}\n", end="", flush=True)
            dist.barrier()
            dist.destroy_process_group()
