"""Joining replica groups that come and go: a torchft Manager with the settings that rounds of branches need."""

import os
import socket
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

import torch.distributed as dist

if TYPE_CHECKING:
    from torchft import Manager

# Peers connect to the store of a replica group for as long as its manager lives.
_STORES: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def join_replicas(
    replica: str | None = None,
    *,
    least: int = 1,
    backend: Literal["gloo", "nccl"] = "gloo",
    timeout: timedelta = timedelta(seconds=60),
    **more: Any,
) -> "Manager":
    """A torchft ``Manager`` for ``Lookaround(…, replicas=manager)``: this process belongs to a replica group, which holds one branch.

    Under torchrun all processes of a replica group call it (after `join`, if there are several); without torchrun one process is one
    replica group. The environment names the lighthouse: ``TORCHFT_LIGHTHOUSE=http://HOST:29510``. Call ``manager.shutdown()`` at the end.

    Args:
        replica: the name of the replica group, by whose order branches are given out; by default the environment's ``REPLICA_GROUP_ID``.
        least: replica groups that an average takes; the lighthouse's ``--min_replicas`` is the same.
        backend: how weights travel.
        timeout: how long one collective or message may take: how long a process that hangs in the middle of an average is waited for.
        **more: of torchft's ``Manager``.

    Raises:
        ImportError: torchft is not installed: ``pip install 'lookaround[ft]'``.
        ValueError: the replica group has no name, ``least`` is below 1, or nobody has said where the lighthouse is.

    Example:
        >>> from lookaround.distributed import join_replicas
        >>> manager = join_replicas("branch-0", least=2)  # doctest: +SKIP
    """
    torchft = _torchft()
    name = replica if replica is not None else os.environ.get("REPLICA_GROUP_ID", "")
    if not name:
        raise ValueError(
            "a replica group needs a name of its own: join_replicas('branch-0'), or REPLICA_GROUP_ID in the environment"
        )
    if least < 1:
        raise ValueError(f"least has to be at least 1, got {least}")
    if not (more.get("lighthouse_addr") or os.environ.get("TORCHFT_LIGHTHOUSE")):
        raise ValueError(
            "nobody has said where the lighthouse is: start torchft_lighthouse --min_replicas "
            f"{least} on one host, and set TORCHFT_LIGHTHOUSE=http://HOST:29510 for every process"
        )
    group = (torchft.ProcessGroupGloo if backend == "gloo" else torchft.ProcessGroupNCCL)(timeout=timeout)
    settings = {"min_replica_size": least, "use_async_quorum": False, "timeout": timeout, "replica_id": name, **more}
    return _made(torchft, group, settings)


def _torchft() -> Any:
    try:
        import torchft
    except ImportError as error:
        raise ImportError(
            f"replica groups that come and go need torchft, which cannot be imported ({error}): pip install 'lookaround[ft]'"
        ) from error
    return torchft


def _made(torchft: Any, group: Any, settings: dict[str, Any]) -> Any:
    """The first process of a replica group says where it can be reached; the others read it when that is not of an earlier run."""
    arguments = {"pg": group, "load_state_dict": None, "state_dict": None, **settings}
    if "MASTER_ADDR" not in os.environ:
        host = socket.gethostname()
        store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
        manager = torchft.Manager(**arguments, rank=0, world_size=1, store_addr=host, store_port=store.port)
        _STORES[manager] = store
        return manager
    several = dist.is_initialized() and dist.get_world_size() > 1
    if several and dist.get_rank():
        dist.barrier()
    manager = torchft.Manager(**arguments)
    if several and not dist.get_rank():
        dist.barrier()
    return manager
