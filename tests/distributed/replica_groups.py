"""Replica groups as threads of one process: a manager with torchft's interface and a process group, so that nothing has to be installed.

`Lighthouse` brings together who is alive and asks for a quorum; a member that has made fewer steps than others takes the state of one of
them, as torchft's does. Exchanges break where a member leaves, or where the test says so.
"""

import copy
import threading
from dataclasses import dataclass, field
from typing import Any

import torch

LONG = 120.0


class KilledError(Exception):
    """This thread is a process that has died."""


class Lighthouse:
    """Who is alive, and what they do together.

    Args:
        members: that the first quorum waits for.
        breaks: (quorum, from 0; rank) to (which of its collectives breaks for it, from 0; whether it has sent its part by then).
    """

    def __init__(self, members: int, breaks: dict[tuple[int, int], tuple[int, bool]] | None = None) -> None:
        self.wanted, self.breaks = members, breaks or {}
        self.alive: set[str] = set()
        self.waiting: dict[str, Fake] = {}
        self.quorums: list[Quorum] = []
        self.changed = threading.Condition()

    def join(self, name: str) -> None:
        with self.changed:
            self.alive.add(name)
            self.changed.notify_all()

    def leave(self, name: str) -> None:
        with self.changed:
            self.alive.discard(name)
            for quorum in self.quorums[-1:]:
                quorum.gone.add(name)
            self.wanted = 0
            self._form()
            self.changed.notify_all()

    def come(self, manager: "Fake", timeout: float) -> "Quorum":
        with self.changed:
            self.waiting[manager.name] = manager
            known = len(self.quorums)
            self._form()
            if not self.changed.wait_for(lambda: manager.name not in self.waiting, timeout):
                del self.waiting[manager.name]
                raise TimeoutError("no quorum")
            return next(q for q in self.quorums[known:] if manager.name in q.names)

    def _form(self) -> None:
        if self.waiting and len(self.waiting) >= self.wanted and self.alive <= self.waiting.keys():
            members = [self.waiting[name] for name in sorted(self.waiting)]
            self.quorums.append(Quorum(self, len(self.quorums), members))
            self.waiting.clear()
            self.wanted = 0
            self.changed.notify_all()


@dataclass
class Quorum:
    """Those who go on together until the next one, and what they have sent each other."""

    lighthouse: Lighthouse
    number: int
    members: "list[Fake]"
    gone: set[str] = field(default_factory=set)
    sent: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)
    given: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = [member.name for member in self.members]
        self.steps = [member.step for member in self.members]


class Done:
    """A collective that is over."""

    def wait(self, timeout=None) -> bool:
        return True


class Group:
    """A process group of a quorum: whoever leaves breaks what the others are waiting for."""

    def __init__(self, quorum: Quorum, rank: int) -> None:
        self.quorum, self.rank, self.calls = quorum, rank, 0

    def _together(self, mine: torch.Tensor) -> list[torch.Tensor]:
        quorum, call, ranks = self.quorum, self.calls, range(len(self.quorum.members))
        self.calls += 1
        at, has_sent = quorum.lighthouse.breaks.get((quorum.number, self.rank), (-1, False))
        with quorum.lighthouse.changed:
            if call != at or has_sent:
                quorum.sent[self.rank, call] = mine.clone()
                quorum.lighthouse.changed.notify_all()
            if call == at:
                raise RuntimeError("the link broke")
            missing = lambda: [quorum.names[r] for r in ranks if (r, call) not in quorum.sent]  # noqa: E731
            over = quorum.lighthouse.changed.wait_for(lambda: not missing() or quorum.gone & {*missing()}, LONG)
            if not over or missing():
                raise RuntimeError("a peer closed the connection")
            return [quorum.sent[r, call] for r in ranks]

    def alltoall_base(self, received, data, out_sizes, in_sizes, options) -> Done:
        count = data.numel() // len(self.quorum.members)
        parts = [of[self.rank * count : (self.rank + 1) * count] for of in self._together(data)]
        received.copy_(torch.cat(parts))
        return Done()

    def broadcast(self, tensors, options) -> Done:
        tensors[0].copy_(self._together(tensors[0])[options.rootRank])
        return Done()


class Fake:
    """What `lookaround` uses of a torchft ``Manager``.

    Args:
        lighthouse: that it belongs to.
        name: of the replica group.
        least: replica groups that a commit takes.
        initial: whether all take the first one's state at step 0.
    """

    _use_async_quorum = False

    def __init__(self, lighthouse: Lighthouse, name: str, least: int = 1, initial: bool = True) -> None:
        self.lighthouse, self.name, self._min_replica_size, self.initial = lighthouse, name, least, initial
        self.step = 0
        self.committed: list[bool] = []
        self.functions: dict[str, tuple[Any, Any]] = {}
        self._pg: Any = None
        self.error: Exception | None = None
        lighthouse.join(name)

    def register_state_dict_fn(self, key, load_state_dict, state_dict) -> None:
        self.functions[key] = load_state_dict, state_dict

    def load_state_dict(self, state_dict) -> None:
        self.step = state_dict["step"]

    def start_quorum(self, *, timeout) -> None:
        self.error = None
        self.quorum = quorum = self.lighthouse.come(self, timeout.total_seconds())
        self.rank = quorum.names.index(self.name)
        self._pg = Group(quorum, self.rank)
        most = max(quorum.steps)
        first = quorum.steps.index(most)
        self._heal(first, [s < most or (self.initial and not most and r != first) for r, s in enumerate(quorum.steps)])

    def _heal(self, source: int, behind: list[bool]) -> None:
        changed, quorum = self.lighthouse.changed, self.quorum
        if any(behind) and self.rank == source:
            given = copy.deepcopy({key: give() for key, (_, give) in self.functions.items()})
            with changed:
                quorum.given["all"] = given
                changed.notify_all()
        if behind[self.rank]:
            with changed:
                assert changed.wait_for(lambda: "all" in quorum.given, LONG)
            for key, (take, _) in self.functions.items():
                take(copy.deepcopy(quorum.given["all"][key]))
            self.step = quorum.steps[source]

    def num_participants(self) -> int:
        return len(self.quorum.members)

    def participating_rank(self) -> int:
        return self.rank

    def errored(self):
        return self.error

    def report_error(self, e: Exception) -> None:
        self.error = e
        with self.lighthouse.changed:  # its connections are closed
            self.quorum.gone.add(self.name)
            self.lighthouse.changed.notify_all()

    def should_commit(self) -> bool:
        well = self.error is None and self.num_participants() >= self._min_replica_size
        self.step += well
        self.committed.append(well)
        return well


def run(lighthouse: Lighthouse, trainings: dict[str, Any]) -> dict[str, Any]:
    """Run ``training(name)`` for each name in a thread; what they return or raise, by name."""
    ends: dict[str, Any] = {}

    def one(name: str) -> None:
        try:
            ends[name] = trainings[name](name)
        except BaseException as error:  # for the main thread to look at
            ends[name] = error
        finally:
            lighthouse.leave(name)

    threads = [threading.Thread(target=one, args=(name,), daemon=True) for name in trainings]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert not any(thread.is_alive() for thread in threads), ends
    return ends
