"""What each process of `test_lost_ranks.py` runs: some of them do not come, or die by SIGKILL in the middle."""

import os
import signal
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from lookaround import Lookaround
from lookaround.distributed import LostRankError, Rows

# Longer than a busy machine keeps a process waiting that is about to come.
LIMIT = timedelta(seconds=8)


def begin(rank: int, size: int, store, shape=None) -> Rows:
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(minutes=2))
    names = ("branch", "dp_shard")[: len(shape or (size,))]
    rows = Rows(init_device_mesh("cpu", shape or (size,), mesh_dim_names=names), 3, time_limit=LIMIT)
    dist.barrier()
    return rows


def meet(rows: Rows, weights, what: str) -> None:
    with rows.meeting(what):
        rows.agree(0, weights, [True] * len(rows.local))
        for _ in rows.means([weights] * len(rows.local), [True] * 3):
            pass


def never_comes(rank: int, size: int, store, missing: str) -> None:
    """A worker that is alive and does not come to the second average."""
    rows = begin(rank, size, store)
    weights = [torch.ones(3)]
    meet(rows, weights, "the average of round 0")
    if rank == int(missing):
        store.wait([f"told {other}" for other in range(size) if other != rank], timedelta(minutes=2))
        return
    came = time.monotonic()
    with pytest.raises(LostRankError) as raised:
        meet(rows, weights, "the average of round 1")
    assert time.monotonic() - came < 60
    assert raised.value.ranks == [int(missing)]
    assert f"rank {missing} (last seen when it left meeting 1)" in str(raised.value)
    assert "did not come to the average of round 1 within 8 s" in str(raised.value)
    store.set(f"told {rank}", "")


def column_never_comes(rank: int, size: int, store) -> None:
    """Of two rows of two processes each the last never comes: only its own column waits for it, and names its global rank."""
    rows = begin(rank, size, store, (2, 2))
    if rank == 3:
        store.wait(["told"], timedelta(minutes=2))
    elif rank == 1:
        with pytest.raises(LostRankError, match=r"rank 3 \(never seen\)") as raised:
            meet(rows, [torch.ones(3)], "the first average")
        assert raised.value.ranks == [3]
        store.set("told", "")
    else:
        meet(rows, [torch.ones(3)], "the first average")


def dies_in_the_middle(rank: int, size: int, store, dying: str) -> None:
    """Killed between two buckets of one average."""
    rows = begin(rank, size, store)
    weights = [torch.ones(2**18) for _ in range(40)]

    def average() -> None:
        with rows.meeting("the average of round 0"):
            for index, _ in enumerate(rows.means([weights] * len(rows.local), [True] * 3)):
                if rank == int(dying) and index == 3:
                    os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(LostRankError) as raised:
        average()
    assert raised.value.ranks == [int(dying)]
    assert f"rank {dying} left in the middle of the average of round 0" in str(raised.value)


def dies_under_way(rank: int, size: int, store, dying: str) -> None:
    """Killed while the average is under way: the others go on, and are told where they would take it in, or ask for it."""
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(minutes=2))
    weight = torch.nn.Parameter(torch.zeros(2**23))
    mesh = init_device_mesh("cpu", (size,), mesh_dim_names=("branch",))
    optimizer = Lookaround(torch.optim.SGD([weight], lr=1.0), size, 3, mesh=mesh, time_limit=LIMIT, overlap=2)
    if rank == int(dying):
        die_after_a_bucket()

    def one_pass() -> None:
        for _ in optimizer.around():
            weight.grad = torch.ones_like(weight)
            optimizer.step()

    for _ in range(4):  # one more than a round
        one_pass()
    assert weight[0] == -4
    with pytest.raises(LostRankError) as asked:
        optimizer.state_dict()
    with pytest.raises(LostRankError) as raised:
        one_pass()
    for error in (asked, raised):
        assert error.value.ranks == [int(dying)]
        assert f"rank {dying} left in the middle of the average of round 0" in str(error.value)


def die_after_a_bucket() -> None:
    take = Rows.means

    def means(self, *args, **settings):
        yield next(iter(take(self, *args, **settings)))
        os.kill(os.getpid(), signal.SIGKILL)

    Rows.means = means


def keeper_of_the_store_dies(rank: int, size: int, outer) -> None:
    """Without torchrun the process of rank 0 keeps the key-value store: killed, it takes the store with it."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) if rank == 0 else None
    if store is not None:
        outer.set("port", str(store.port))
    store = store or dist.TCPStore("127.0.0.1", int(outer.get("port")), is_master=False)
    rows = begin(rank, size, store)
    meet(rows, [torch.ones(3)], "the average of round 0")
    if rank == 0:
        outer.wait([f"left {other}" for other in range(1, size)], timedelta(minutes=2))
        os.kill(os.getpid(), signal.SIGKILL)
    outer.set(f"left {rank}", "")
    with pytest.raises(LostRankError, match="key-value store"):
        meet(rows, [torch.ones(3)], "the average of round 1")


SCENARIOS = (
    (3, never_comes, "0"),
    (3, never_comes, "2"),
    (4, column_never_comes),
    (3, dies_in_the_middle, "0"),
    (3, dies_in_the_middle, "1"),
    (3, dies_under_way, "1"),
    (3, keeper_of_the_store_dies),
)


def main(rank: int, size: int, store) -> None:
    """All scenarios at once, each among processes of its own."""
    for index, (few, scenario, *words) in enumerate(SCENARIOS):
        if rank < few:
            scenario(rank, few, dist.PrefixStore(str(index), store), *words)
            print(f"{scenario.__name__} {' '.join(words)}: process {rank} ends well\n", end="", flush=True)
            return
        rank -= few
