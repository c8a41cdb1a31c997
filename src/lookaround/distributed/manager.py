"""What `lookaround.distributed.Replicas` needs of torchft, and what it tells whoever uses it."""

import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Literal, Protocol

from torch.distributed import ProcessGroup

Kind = Literal["start", "average", "restart"]
State = dict[str, Any]


class Manager(Protocol):
    """What is used of a ``torchft.Manager``."""

    _pg: ProcessGroup

    def register_state_dict_fn(
        self, key: str, load_state_dict: Callable[[State], None], state_dict: Callable[[], State]
    ) -> None:
        """Have state given to a process that heals, and taken there."""

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Set how many steps have been committed."""

    def start_quorum(self, *, timeout: timedelta) -> None:
        """Wait for those who are alive, and heal."""

    def num_participants(self) -> int:
        """How many replica groups have come."""

    def participating_rank(self) -> int | None:
        """Which of them this one is."""

    def errored(self) -> Any:
        """What went wrong since the quorum; None for nothing."""

    def report_error(self, e: Exception) -> None:
        """Something went wrong: do not commit."""

    def should_commit(self) -> bool:
        """Whether all went well for all processes of this replica group."""


class LostReplicasError(RuntimeError):
    """Too few replica groups came within the time limit, or this one cannot go on with the others."""


def check_manager(manager: Any) -> None:
    """Raise where something is no Manager of torchft, or one that heals beside the training."""
    wanted = ("register_state_dict_fn", "start_quorum", "should_commit", "report_error", "_pg")
    if any(not hasattr(manager, name) for name in wanted):
        raise TypeError(
            f"replicas has to be a torchft Manager, got {manager!r}: make one with lookaround.distributed.join_replicas()"
        )
    if getattr(manager, "_use_async_quorum", False):
        raise ValueError(
            "replicas is a Manager that heals while a round runs (use_async_quorum=True), which would put a peer's weights under a branch "
            "that is training: make it with use_async_quorum=False, or with lookaround.distributed.join_replicas()"
        )


def check_same(said: Sequence[Sequence[int]]) -> None:
    """Raise ValueError where replica groups are about to do something else."""
    for place, what in enumerate(("the kind of meeting", "the round", "the tensors", "the number of branches")):
        values = [row[place] for row in said]
        if len(set(values)) > 1:
            raise ValueError(
                f"the replica groups differ in {what} ({values} in their order): build the same model and optimizer, load the same "
                "checkpoint and take the same steps on all of them"
            )


def warn_of_lost(missing: set[int], here: set[int], kind: Kind, round_number: int, size: int) -> None:
    """Say which branches are lost, and who goes on."""
    many, where = len(missing) > 1, "the start" if kind == "start" else f"the {kind} of round {round_number}"
    warnings.warn(
        f"branch{'es' if many else ''} {listed(missing)} did not come to {where}: the mean is over {listed(here)}, divided by {len(here)}; "
        f"the {size} who are there take {'their augmentations' if many else 'its augmentation'} in turn from the next round on",
        RuntimeWarning,
        stacklevel=2,
    )


def listed(numbers: set[int]) -> str:
    """Numbers in a row."""
    return ", ".join(map(str, sorted(numbers))) or "none"
