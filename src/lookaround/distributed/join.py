"""Joining a process group, also after torchrun has started the processes again."""

import os
import time
import uuid
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

_POLL = 0.01


def join(backend: str | None = None, *, timeout: timedelta = timedelta(minutes=10)) -> None:
    """`torch.distributed.init_process_group` for processes that torchrun starts, and starts again when one of them has died.

    Processes find each other through the key-value store of torchrun's agent. After a restart it still has the keys of those who died, and
    whoever reads their addresses waits for the dead: with torch 2.15 one restart in a few hung or failed that way. Here the
    processes that are there now agree on a name first, under which no key is old.

    Args:
        backend: ``"gloo"``, ``"nccl"``, or None for what suits the machine.
        timeout: for joining, and for the process group's operations.

    Raises:
        TimeoutError: some ranks did not join, naming them.

    Example:
        >>> from lookaround.distributed import join
        >>> join("gloo")  # doctest: +SKIP
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        dist.init_process_group(backend, timeout=timeout)
        return
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(  # type: ignore[attr-defined]
        address, port, is_master=False, timeout=timeout
    )
    name = meet(PrefixStore("lookaround join", store), rank, size, timeout)
    dist.init_process_group(backend, store=PrefixStore(name, store), rank=rank, world_size=size, timeout=timeout)


def meet(store: Store, rank: int, size: int, timeout: timedelta) -> str:
    """A name that all processes of now have in common, and none that was here before.

    Each says hello under a word of its own, and waits for the name under that word. The first process answers whatever hello it
    finds, an old one too, until all others have said that they know this name.
    """
    if rank:
        word = uuid.uuid4().hex
        store.set(f"hello {rank}", word)
        store.wait([word], timeout)
        name: str = store.get(word).decode()
        store.set(f"{name} {rank}", "")
        return name
    name = uuid.uuid4().hex
    answered: dict[int, str] = {}
    missing, end = list(range(1, size)), time.monotonic() + timeout.total_seconds()
    while missing:
        if time.monotonic() > end:
            raise TimeoutError(
                f"rank {', '.join(map(str, missing))} of {size} did not join within {timeout}: see their logs"
            )
        for other in missing:
            _answer(store, name, other, answered)
        missing = [other for other in missing if not store.check([f"{name} {other}"])]
        time.sleep(_POLL if missing else 0)
    return name


def _answer(store: Store, name: str, other: int, answered: dict[int, str]) -> None:
    if store.check([f"hello {other}"]):
        word = store.get(f"hello {other}").decode()
        if answered.get(other) != word:
            store.set(word, name)
            answered[other] = word
