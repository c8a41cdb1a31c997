"""What each process of `test_nccl.py` runs, on a GPU of its own."""

from datetime import timedelta

import torch
import torch.distributed as dist
from equality_on_each import BATCH, INNERS, K, minibatch, network
from torch.distributed.device_mesh import init_device_mesh

from lookaround import Lookaround

ROUNDS = 3


def trained(branches: int, device: torch.device, **settings) -> list[torch.Tensor]:
    model = network().to(device)
    optimizer = Lookaround(INNERS["momentum"](model.parameters()), branches, K, model=model, **settings)
    for step in range(ROUNDS * K):
        for branch in optimizer.around():
            inputs, labels = minibatch(branch, step, torch.float32)
            assert len(inputs) == BATCH
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs.to(device)), labels.to(device)).backward()
            optimizer.step()
    return [t.detach().cpu() for t in (*model.parameters(), *model.buffers())]


def main(rank: int, size: int, store) -> None:
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl", store=store, rank=rank, world_size=size, timeout=timedelta(minutes=2), device_id=device
    )
    mesh = init_device_mesh("cuda", (size,), mesh_dim_names=("branch",))
    expected = trained(size, device)
    got = trained(size, device, mesh=mesh)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    for wire in ("bfloat16", "int8"):
        lossy = trained(size, device, mesh=mesh, wire=wire)
        torch.testing.assert_close(lossy, expected, rtol=0.1, atol=0.1)
    dist.destroy_process_group()
    print(f"equal on {device}\n", end="", flush=True)
