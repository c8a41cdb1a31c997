"""What each process of `test_skipped.py` runs: steps that a scaler skips on one row, or on all of them, beside one process."""

from datetime import timedelta

import torch
import torch.distributed as dist
from equality_on_each import INNERS, compare, minibatch, network, values
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from lookaround import Lookaround
from lookaround.distributed import Checkpoints, load_run, save_run

K, PASSES, BRANCHES = 3, 17, 4
# (branch, step) whose gradients are not finite: of one branch; of the last step of a round; of one twice; and of all of them.
BY_ALL = {(branch, step) for branch in range(BRANCHES) for step in (0, 8, 9, 13)}
SKIPPED = {(1, 2), (3, 5), (2, 6), (2, 7)} | BY_ALL


class Training:
    """A loop with loss scaling. Scales are powers of two, so gradients are the same whatever the scale is."""

    def __init__(self, inner: str, skipped=SKIPPED, k: int = K, **settings) -> None:
        self.model, self.skipped = network(), skipped
        self.optimizer = Lookaround(INNERS[inner](self.model.parameters()), BRANCHES, k, model=self.model, **settings)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)

    def turn(self, branch: int, step: int) -> None:
        inputs, labels = minibatch(branch, step, torch.float32)
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.model(inputs), labels)
        self.scaler.scale(loss * float("nan") if (branch, step) in self.skipped else loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def passes(self, steps: range) -> list[list[torch.Tensor]]:
        """One after the other; what the average gives after each. To one process a pass that all skip is no part of a round: its
        statistics, which no step belongs to, are those of the branch in the model until the round's first step."""
        seen = []
        for step in steps:
            for branch in self.optimizer.around():
                self.turn(branch, step)
            with self.optimizer.averaged():
                shown = values(self.model, counted=False)
                seen.append(shown[:6] if (0, step) in BY_ALL else shown)
        return seen

    def blocks(self, steps: range) -> list[list[torch.Tensor]]:
        """The minibatches of a round together; where that leads."""
        for step, branch in self.optimizer.around(steps):
            self.turn(branch, step)
        self.optimizer.average()
        return [values(self.model, counted=True)]


def told(make) -> list[list[torch.Tensor]]:
    """What one process gets, on all of them."""
    message = [make() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(message)
    return message[0]


def check_steps_skipped_on_one_row_and_on_all(size: int) -> None:
    mesh = init_device_mesh("cpu", (size,), mesh_dim_names=("branch",))
    for inner in INNERS:
        want = told(lambda inner=inner: Training(inner).passes(range(PASSES)))
        compare(Training(inner, mesh=mesh).passes(range(PASSES)), want, exact=True)
    for settings in ({}, {"overlap": 2}):
        want = told(lambda settings=settings: Training("momentum", **settings).blocks(range(PASSES)))
        compare(Training("momentum", mesh=mesh, **settings).blocks(range(PASSES)), want, exact=True)


def check_the_very_first_step_is_skipped_on_one_row(size: int) -> None:
    """It comes to the average without momentum, which no row interpolates then."""
    mesh = init_device_mesh("cpu", (size,), mesh_dim_names=("branch",))
    settings = {"inner_state": "interpolate", "alpha": 0.8, "k": 1, "skipped": {(BRANCHES - 1, 0)}}
    want = told(lambda: Training("momentum", **settings).passes(range(4)))
    compare(Training("momentum", mesh=mesh, **settings).passes(range(4)), want, exact=True)


def check_goes_on_after_a_skipped_step(size: int, folder: str) -> None:
    """Saved where one row has skipped a step of this round, or all have; gone on with by one process, and by as many."""
    mesh = init_device_mesh("cpu", (size,), mesh_dim_names=("branch",))
    for saved in (1, 7, 9, 14):
        checkpoints = Checkpoints(f"{folder}/{size}-{saved}")
        first = Training("momentum", mesh=mesh)
        first.passes(range(saved))
        save_run(checkpoints, saved, first.model, first.optimizer)
        undisturbed = first.passes(range(saved, PASSES))
        again = Training("momentum", mesh=mesh)
        assert load_run(checkpoints, again.model, again.optimizer) == saved
        compare(again.passes(range(saved, PASSES)), undisturbed, exact=True)
        alone = init_device_mesh("cpu", (size, 1), mesh_dim_names=("copy", "branch"))["branch"]
        one = Training("momentum", mesh=alone)
        assert load_run(checkpoints, one.model, one.optimizer) == saved
        compare(one.passes(range(saved, PASSES)), undisturbed, exact=True)


def main(rank: int, most: int, store, folder: str) -> None:
    """Among all processes, and among all but one: no row but the first holds several of the four branches."""
    for size in (most, most - 1):
        if rank < size:
            own = dist.PrefixStore(str(size), store)
            dist.init_process_group("gloo", store=own, rank=rank, world_size=size, timeout=timedelta(minutes=2))
            check_steps_skipped_on_one_row_and_on_all(size)
            check_the_very_first_step_is_skipped_on_one_row(size)
            check_goes_on_after_a_skipped_step(size, folder)
            dist.barrier()
            dist.destroy_process_group()
            print(f"checked among {size}\n", end="", flush=True)
