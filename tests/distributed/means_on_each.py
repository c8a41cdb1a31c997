"""What each process of `test_means.py` runs."""

from datetime import timedelta
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from conftest import Allocations
from lookaround.distributed import Rows
from lookaround.optim.average import Alone, settle, towards

SHAPES = ((3, 5), (), (0,), (7,), (1, 300), (2, 3, 2, 2))


def draw(key: int, dtype=torch.float32, shapes=SHAPES) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(key)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def rows_of(size: int, branches: int, **settings) -> Rows:
    mesh = init_device_mesh("cpu", (size,), mesh_dim_names=("branch",))
    return Rows(mesh, branches, time_limit=timedelta(seconds=60), **settings)


def mean_of(rows: Rows, weights: dict[int, list], taking_part=None, **settings) -> list[torch.Tensor]:
    """The mean as new tensors of the shapes of one branch."""
    result = [torch.empty(w.shape, dtype=torch.promote_types(w.dtype, torch.float32)) for w in weights[rows.local[0]]]
    local = [weights[j] for j in rows.local]
    for mean, block in rows.means(local, taking_part or [True] * rows.placement.branches, result, **settings):
        torch._foreach_copy_(block[len(local)], mean)
    return result


def one_process(weights: list[list]) -> list[torch.Tensor]:
    """The mean as one process that holds all branches takes it."""
    count, copies = len(weights), [[w.clone() for w in of] for of in weights]
    with torch.no_grad():
        settle(Alone(count).means(copies, [True] * count), count, partial(towards, 1.0))
    return copies[0]


def check_bit_for_bit(size: int) -> None:
    for branches in range(size, 5):
        weights = [draw(j) for j in range(branches)]
        rows = rows_of(size, branches)
        got = mean_of(rows, {j: weights[j] for j in rows.local})
        want = one_process(weights)
        if sum(count > 1 for count in rows.placement.counts[1:]):
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)
        else:
            assert all(map(torch.equal, got, want)), (size, branches)
        same_on_all(got)


def same_on_all(tensors) -> None:
    for tensor in tensors:
        for row in gathered(tensor):
            assert torch.equal(row, tensor)


def gathered(tensor) -> list[torch.Tensor]:
    """For checks alone: what every process has."""
    copies = [torch.empty_like(tensor).contiguous() for _ in range(dist.get_world_size())]
    dist.all_gather(copies, tensor.contiguous())
    return copies


def check_weights_and_who_is_left_out(size: int) -> None:
    rows = rows_of(size, 4)
    weights = [draw(j) for j in range(4)]
    weights[2][0][0, 0] = float("nan")
    well, _ = rows.agree(7, weights[0], [all(w.isfinite().all() for w in weights[j]) for j in rows.local])
    assert well == [True, True, False, True]
    got = mean_of(rows, {j: weights[j] for j in rows.local}, well)
    want = [sum(columns) / 3 for columns in zip(weights[0], weights[1], weights[3], strict=True)]
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)
    alone = mean_of(rows, {j: weights[j] for j in rows.local}, [False, False, False, True])
    assert all(map(torch.equal, alone, weights[3]))


def check_every_dtype(size: int) -> None:
    rows = rows_of(size, size)
    for dtype in (torch.float64, torch.bfloat16, torch.float16, torch.complex64):
        drawn = [draw(j, torch.float64) for j in range(size)]
        weights = [[(w + 1j * w.cos() if dtype.is_complex else w).to(dtype) for w in of] for of in drawn]
        wide = torch.float64 if dtype == torch.float64 else torch.complex64 if dtype.is_complex else torch.float32
        result = [torch.empty(w.shape, dtype=wide) for w in weights[0]]
        for mean, (_, target) in rows.means([weights[rows.placement.row]], [True] * size, result):
            assert mean[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            torch._foreach_copy_(target, mean)
        want = [torch.stack([w.to(wide) for w in column]).mean(0) for column in zip(*weights, strict=True)]
        torch.testing.assert_close(result, want, rtol=1e-6, atol=1e-6)


def check_a_weight_on_which_all_agree_stays(size: int) -> None:
    rows = rows_of(size, 4)
    weights = draw(0)
    got = mean_of(rows, dict.fromkeys(rows.local, weights))
    assert all(map(torch.equal, got, weights))


def check_a_programs_own_messages_stay_its_own(size: int) -> None:
    """In the same group, under way while a mean is taken; tensors without elements take no message."""
    if size == 1:
        return
    rows, told = rows_of(size, size), torch.zeros(300)
    after, before = (dist.get_rank() + 1) % size, (dist.get_rank() - 1) % size
    coming = dist.irecv(told, before)
    weights = [draw(j) for j in range(size)]
    assert all(map(torch.equal, mean_of(rows, {j: weights[j] for j in rows.local}), one_process(weights)))
    nothing = [torch.zeros(0), torch.zeros(2, 0)]
    assert all(map(torch.equal, mean_of(rows, dict.fromkeys(rows.local, nothing)), nothing))
    dist.isend(torch.full((300,), 1.0 + dist.get_rank()), after).wait()
    coming.wait()
    assert bool((told == 1.0 + before).all())


def check_integers(size: int) -> None:
    rows = rows_of(size, 4)
    for branch in range(4):
        counters = [torch.tensor(100 + rows.placement.row), torch.full((2, 3), rows.placement.row, dtype=torch.int32)]
        flags = [torch.tensor([rows.placement.row == 1, True])]
        rows.copy_([*counters, *flags], branch)
        row = rows.placement.row_of(branch)
        assert counters[0] == 100 + row
        assert counters[1].unique().tolist() == [row]
        assert flags[0].tolist() == [row == 1, True]


def check_local_shards_alone(size: int) -> None:
    """Of tensors sharded over another dimension of the mesh each process sends its shard to those that have the same one."""
    if size != 4:
        return
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("branch", "dp_shard"))
    rows = Rows(mesh, 2, time_limit=timedelta(seconds=60))
    whole = [draw(j, shapes=((3, 4), (5,))) for j in range(2)]
    mine = [distribute_tensor(w, mesh["dp_shard"], [Shard(0)]) for w in whole[rows.placement.row]]
    for mean, (target,) in rows.means([mine], [True, True]):
        torch._foreach_copy_(target, mean)
    assert all(map(torch.equal, [t.full_tensor() for t in mine], one_process(whole)))
    shard_bytes = sum(t.to_local().nbytes for t in mine)
    assert shard_bytes <= rows.sent <= shard_bytes + 8, (rows.sent, shard_bytes)


def check_the_bytes(size: int) -> None:
    """2 (R - 1) / R numbers for each of the model's, at the wire's bytes each."""
    numbers = 2048 * size
    for wire, each in (("exact", 4), ("bfloat16", 2), ("int8", 1 + 4 / 128)):
        rows = rows_of(size, size, wire=wire)
        weights = {rows.placement.row: [torch.zeros(numbers)]}
        lossy = {} if wire == "exact" else {"start": [torch.zeros(numbers)], "lost": [torch.zeros(numbers)]}
        mean_of(rows, weights, **lossy)
        assert rows.sent == 2 * (size - 1) * numbers // size * each


def check_memory(size: int) -> None:
    """Four buckets of 4 MB under way, and what is sent and received of each, whatever the size of the model."""
    rows = rows_of(size, size)
    weights = [torch.zeros(2**20)] * 32
    with Allocations() as counted:
        for _mean, _block in rows.means([weights], [True] * size):
            pass
    assert counted.live_at_most <= 3 * 4 * weights[0].nbytes


def check_error_feedback(size: int) -> None:
    """What a lossy wire loses comes later: over many rounds the sum of the means is the exact one, but for a round's rounding."""
    for wire, step in (("bfloat16", 2**-8), ("int8", 1 / 127)):
        rows = rows_of(size, size, wire=wire)
        start, lost = draw(100), [torch.zeros(shape) for shape in SHAPES]
        exact = [w.double() for w in start]
        for round_number in range(30):
            ways = [draw(1000 * round_number + j) for j in range(size)]
            mine = [w + way for w, way in zip(start, ways[rows.placement.row], strict=True)]
            start = mean_of(rows, {rows.placement.row: mine}, start=start, lost=lost)
            exact = [w + sum(column).double() / size for w, column in zip(exact, zip(*ways, strict=True), strict=True)]
        same_on_all(start)
        # 4.5: about the largest of the numbers drawn, and what is owed of one round before is sent with it.
        worst = max((a.double() - b).abs().max().item() for a, b in zip(start, exact, strict=True) if a.numel())
        assert worst < 3 * 4.5 * step, (wire, worst)
        assert worst > 0
        owed = [sum(gathered(w)) / size for w in lost]
        torch.testing.assert_close(
            [(w + o).double() for w, o in zip(start, owed, strict=True)], exact, rtol=0, atol=2e-5
        )


def check_a_row_left_out_of_a_lossy_mean(size: int) -> None:
    """It takes the others' mean, and keeps what it owes."""
    rows = rows_of(size, size, wire="int8")
    start, lost = draw(0), [torch.full(shape, 0.5) for shape in SHAPES]
    weights = [[w + 0.1 * v for w, v in zip(start, draw(j), strict=True)] for j in range(size)]
    if rows.placement.row == 0:
        weights[0][0].fill_(float("nan"))
    got = mean_of(
        rows, {rows.placement.row: weights[rows.placement.row]}, [False] + [True] * (size - 1), start=start, lost=lost
    )
    want = [sum(column) / (size - 1) + 0.5 for column in zip(*weights[1:], strict=True)]
    torch.testing.assert_close(got, want, rtol=0, atol=0.02)
    assert all(w.isfinite().all() for w in lost)
    if rows.placement.row == 0:
        assert all((w == 0.5).all() for w in lost)


def check_rows_that_differ_say_so(size: int) -> None:
    rows = rows_of(size, size)
    for round_number, tensors, what in (
        (rows.placement.row, draw(0), "the round"),
        (3, draw(0, shapes=((rows.placement.row, 2),)), "the tensors"),
    ):
        with pytest.raises(ValueError, match=f"differ in {what} "):
            rows.agree(round_number, tensors, [True])


def main(rank: int, most: int, store) -> None:
    """All checks among the first process, the first two, and so on: one start of the processes for all of them."""
    for size in range(1, most + 1):
        if rank < size:
            check_among(rank, size, dist.PrefixStore(str(size), store))


def check_among(rank: int, size: int, store) -> None:
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(minutes=2))
    checks = [check for name, check in globals().items() if name.startswith("check_") and name != "check_among"]
    if size not in (2, 3):  # what depends on their number alone
        checks = [check_bit_for_bit, check_integers]
    for check in checks:
        check(size)
    dist.barrier()
    dist.destroy_process_group()
    print(f"{len(checks)} checks among {size}")
