"""What a wrapper with branches begins with: checked settings for the groups, and its parts."""

from collections.abc import Callable
from functools import partial
from typing import Any

from lookaround.optim.adaptive import Adaptive
from lookaround.optim.average import Rows
from lookaround.optim.branches import Branches
from lookaround.optim.cadence import Place
from lookaround.optim.checks import Alpha, Period, check_count, evaluate_alpha, evaluate_k
from lookaround.optim.common import Common
from lookaround.optim.overlap import Overlap
from lookaround.optim.overlapped import Overlapped
from lookaround.optim.own import Own
from lookaround.optim.replay import Replay
from lookaround.optim.rounds import Rounds
from lookaround.optim.run import COUNTERS, IN_BLOCK
from lookaround.optim.watch import Group


def settings(rows: Rows, k: Period, alpha: Alpha, start: int) -> Group:
    """What stands in the groups before the first step."""
    first = {"k": evaluate_k(k, 0), "alpha": evaluate_alpha(alpha, 0)}
    return {
        **first,
        "branches": rows.branches,
        "start": check_count("start", start, least=0),
        **fresh(rows.local.start),
    }


def fresh(branch: int) -> Group:
    """Counters before the first step, and what a checkpoint says of itself."""
    counters = {**dict.fromkeys((*COUNTERS, *IN_BLOCK), 0), "branch": branch}
    return {**counters, "has_slow": False, "has_training": False, "tensors": 0, "entries": 0}


def rounds(
    name: str,
    branches: Branches,
    common: Common,
    adaptive: Adaptive | None,
    k: Period,
    alpha: Alpha,
    *,
    plain: bool,
    flight: Overlap | None,
    overlap: int,
) -> Rounds:
    """The rounds of a wrapper of that name before the first step; ``plain`` where the inner optimizer is no wrapper."""
    own, replay = Own(name, branches, common, plain), Replay(f"{name}_replay", partial(_is_common, name))
    place = Place(branch=branches.local.start)
    parts = (name, branches, common, own, replay, adaptive, _schedules(k, alpha), place)
    return Overlapped(*parts, overlap=overlap, flight=flight) if flight is not None else Rounds(*parts)


def _schedules(k: Period, alpha: Alpha) -> dict[str, Callable[[int], Any]]:
    """k and α where they are functions of the round, checked when they are asked."""
    found: dict[str, Callable[[int], Any]] = {}
    if callable(k):
        found["k"] = partial(evaluate_k, k)
    if callable(alpha):
        found["alpha"] = partial(evaluate_alpha, alpha)
    return found


# A function and not a method: a wrapper that its own parts hold would outlive its last user, until the next collection of cycles.
def _is_common(name: str, group: Group, key: str) -> bool:
    """Whether a setting is one that users and schedulers write."""
    own = key.startswith(f"{name}_")
    return key not in ("params", "param_names") and not own and f"{name}_inner.0.{key}" not in group
