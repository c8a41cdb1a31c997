"""Hosts that are network namespaces of this machine, with a link of a given speed between them (Linux, as root, with iproute2)."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

_CABLE = "cable"
_BURST = "64kb"  # the least that a token bucket needs at these rates is a tick's worth; a larger one would let messages through for free


@dataclass(frozen=True)
class Host:
    """Where a process runs.

    Attributes:
        enter: words before a command that put it there.
        address: of the first host, as the others see it.
        interface: that processes talk through; its counters are those of these processes alone, where there is a namespace.
    """

    address: str
    interface: str
    enter: list[str] = field(default_factory=list)

    def environment(self, rank: int, size: int, port: int) -> dict[str, str]:
        """What `torch.distributed.init_process_group` reads."""
        return {
            **os.environ,
            "RANK": str(rank),
            "WORLD_SIZE": str(size),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(port),
            "GLOO_SOCKET_IFNAME": self.interface,
            "OMP_NUM_THREADS": "1",
            "TORCH_CPP_LOG_LEVEL": "ERROR",
        }


def missing() -> str:
    """Why there can be no namespaces here, or nothing."""
    if os.geteuid():
        return "network namespaces need root"
    absent = [tool for tool in ("ip", "tc") if not shutil.which(tool)]
    return f"{' and '.join(absent)} of iproute2 are not installed" if absent else ""


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


@contextmanager
def _namespaces(count: int) -> Iterator[list[str]]:
    names = [f"lookaround-{os.getpid()}-{index}" for index in range(count)]
    try:
        for name in names:
            _run("ip", "netns", "add", name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@contextmanager
def one_host(processes: int) -> Iterator[list[Host]]:
    """All processes on one host, over its loopback: in a namespace of their own if that can be had."""
    if missing():
        yield [Host("127.0.0.1", "lo")] * processes
        return
    with _namespaces(1) as (name,):
        yield [Host("127.0.0.1", "lo", ["ip", "netns", "exec", name])] * processes


@contextmanager
def hosts_with_a_link(megabits: float) -> Iterator[list[Host]]:
    """Two hosts of one process each; either sends the other at most so many 10⁶ bits a second."""
    with _namespaces(2) as (first, second):
        _run("ip", "link", "add", _CABLE, "netns", first, "type", "veth", "peer", "name", _CABLE, "netns", second)
        for index, name in enumerate((first, second), start=1):
            _run("ip", "-n", name, "addr", "add", f"10.77.0.{index}/24", "dev", _CABLE)
            _run("ip", "-n", name, "link", "set", _CABLE, "up")
            limit = ("rate", f"{megabits}mbit", "burst", _BURST, "latency", "500ms")
            _run("tc", "-n", name, "qdisc", "add", "dev", _CABLE, "root", "tbf", *limit)
        yield [Host("10.77.0.1", _CABLE, ["ip", "netns", "exec", name]) for name in (first, second)]


def start_on(hosts: list[Host], command: list[str]) -> list["subprocess.Popen[str]"]:
    """One process of a command on each host, with its rank."""
    port = free_port()
    return [
        subprocess.Popen(
            [*host.enter, *command],
            env=host.environment(rank, len(hosts), port),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if rank else None,
            text=True,
        )
        for rank, host in enumerate(hosts)
    ]
