"""What each process of the FSDP2 checks runs: the sharded training beside the whole one, which has to follow the same trajectory."""

import datetime
import sys

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import SGD, Adam

from lookaround import SAM, Lookahead, Lookaround

WRAPS = {
    "lookahead": lambda o: Lookahead(o, k=3),
    "lookahead, adaptive": lambda o: Lookahead(o, k=3, alpha="adaptive", alpha_low=0.0),
    "lookahead, interpolate": lambda o: Lookahead(o, k=2, inner_state="interpolate"),
    "lookaround": lambda o: Lookaround(o, 3, k=2),
    "lookaround, alpha": lambda o: Lookaround(o, 2, k=2, alpha=0.5),
    "sam": lambda o: SAM(o, rho=0.1),
    "asam": lambda o: SAM(o, rho=0.1, adaptive=True),
    "lookaround around lookahead": lambda o: Lookaround(Lookahead(o, k=3), 2, k=2),
}
INNERS = {"momentum": lambda p: SGD(p, lr=0.05, momentum=0.9), "adam": lambda p: Adam(p, lr=0.01)}


def network() -> nn.Module:
    torch.manual_seed(0)
    # Three rows on two processes: shards of unequal size, and one process with none of the last bias.
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)).double()


def closure_for(optimizer, model, step):
    def closure():
        optimizer.zero_grad()
        generator = torch.Generator().manual_seed(10 * step + getattr(optimizer, "branch", 0))
        loss = model(torch.randn(8, 4, generator=generator, dtype=torch.float64)).square().mean()
        loss.backward()
        return loss

    return closure


def whole(parameter):
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def compare(wrap, inner, mesh) -> None:
    plain, sharded = network(), network()
    for layer in (sharded[0], sharded[2], sharded):
        fully_shard(layer, mesh=mesh)
    ours, theirs = (WRAPS[wrap](INNERS[inner](m.parameters())) for m in (sharded, plain))
    storage = [p.to_local().data_ptr() for p in sharded.parameters()]
    for step in range(9):
        ours.step(closure_for(ours, sharded, step))
        theirs.step(closure_for(theirs, plain, step))
        if hasattr(ours, "averaged"):
            if step == 4:
                restart(ours, sharded), restart(theirs, plain)
            with ours.averaged(), theirs.averaged():
                assert_same(sharded, plain)
        assert_same(sharded, plain)
    assert storage == [p.to_local().data_ptr() for p in sharded.parameters()]


def restart(optimizer, model) -> None:
    """In the middle of a round, from weights that something else has put into the model."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    optimizer.restart()


def assert_same(sharded, plain) -> None:
    for a, b in zip(sharded.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(whole(a.detach()), b.detach(), rtol=1e-9, atol=1e-9)


def diverge(mesh) -> None:
    """One process's shard of one branch becomes NaN: all processes leave that branch out."""
    weight = nn.Linear(1, 4, bias=False).double()
    with torch.no_grad():
        weight.weight.zero_()
    fully_shard(weight, mesh=mesh)
    optimizer = Lookaround(SGD(weight.parameters(), lr=1.0), 2, k=1)
    for j in optimizer.around():
        gradient = torch.full((4, 1), -2.0 - j, dtype=torch.float64)
        if j == 0:
            gradient[0] = float("nan")
        weight.weight.grad = torch.distributed.tensor.distribute_tensor(gradient, mesh, weight.weight.placements)
        optimizer.step()
    assert whole(weight.weight.detach()).flatten().tolist() == [3.0] * 4


def resume(wrap, mesh, folder) -> None:
    """Saved sharded in the middle of a round, loaded into a fresh template, it goes on bit for bit."""
    ends = []
    for steps in (range(11), range(5), range(5, 11)):
        model = network()
        fully_shard(model, mesh=mesh)
        optimizer = WRAPS[wrap](INNERS["adam"](model.parameters()))
        if steps.start:
            template = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
            dcp.load(template, checkpoint_id=folder)
            set_state_dict(model, optimizer, model_state_dict=template["model"], optim_state_dict=template["optimizer"])
        for step in steps:
            optimizer.step(closure_for(optimizer, model, step))
        if steps.stop == 5:
            dcp.save(
                dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True)), checkpoint_id=folder
            )
        ends.append([whole(p.detach()) for p in model.parameters()])
    assert all(map(torch.equal, ends[0], ends[2]))


def main(rank: int, size: int, store: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=datetime.timedelta(minutes=5)
    )
    mesh = init_device_mesh("cpu", (size,))
    for wrap in WRAPS:
        for inner in INNERS if size > 1 else ["adam"]:
            compare(wrap, inner, mesh)
    diverge(mesh)
    for i, wrap in enumerate(("lookahead, interpolate", "lookaround, alpha", "lookaround around lookahead")):
        resume(wrap, mesh, f"{store}.{i}")
    dist.barrier()  # no process leaves while another still talks to it
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
