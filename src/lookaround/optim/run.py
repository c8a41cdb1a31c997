"""What changes while a wrapper with branches runs: the place in the nest of loops, who is looking, what was left. No step is made here."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lookaround.optim.adaptive import Adaptive
from lookaround.optim.branches import Branches
from lookaround.optim.cadence import Place
from lookaround.optim.checks import check_alpha
from lookaround.optim.common import Common
from lookaround.optim.gradients import Left
from lookaround.optim.own import Own
from lookaround.optim.replay import Replay
from lookaround.showing import Showing

# The place in the nest of loops and in a block of minibatches, as it stands in the groups.
COUNTERS = ("round", "step", "branch", "taken", "pass", "skipped")
IN_BLOCK = ("at", "made", "batches")
# What a state dict says in the groups of an average that is under way.
UNDER_WAY, LEFT_OUT = "under_way", "left_out"


@dataclass
class Run:
    """The parts of a wrapper and what changes while it runs, in one object, which proxies of the wrapper share.

    In the groups, where it is saved and loaded with everything else, stands under the wrapper's name

    ``k``, ``alpha``, ``branches``
        which users may schedule, and d,
    ``start``
        passes still before the first round, in which all branches share one set of weights; 0 from the first round on,
    ``round``, ``step``, ``branch``, ``taken``, ``pass``, ``skipped``
        see `Place`; ``pass`` is its ``most``,
    ``at``, ``made`` and ``batches``
        what is done of a block of minibatches, below,
    ``tensors``
        how much a checkpoint holds: one from which something is missing is refused.

    The counters are written there when someone looks: `note`.

    Attributes:
        name: of the wrapper.
        branches, common, own, replay, adaptive: the parts.
        schedules: k and α where they are functions of the round.
        place: in the nest of loops.
        walk: of the loop over `around` that is open; None outside of one.
        left: whether a loop was left half-way.
        resumed: whether a branch's turn was over but for the end of its loop's body when what was loaded was saved.
        shown: how many look at something in the model, in contexts of `averaged` here and of others.
        barred: those others, for messages.
        showing: the average that is shown, as others know of it.
        evaluating: whether `eval` has put the average into the model.
        created: whether the first step has only created state.
        stale: the gradient that a turn without a step has left.
        at: the place of the minibatch that is being trained on, among those taken together; None where each is taken alone.
        done, made: how many of them the branch in the model is done with, and, a bit for each, with which of them a branch has stepped.
        block: how many minibatches are being taken together; 0 where each is taken alone.
        batches: minibatches that all branches are done with, in all.
        last: whether this is the last turn of the loop over branches.
        leaving: whether the loop over minibatches is left after this turn.
        fresh: whether the next step has to look whether a round begins.
        noted: the counters as they stand in the groups; nothing where they have not been written.
        overlap: passes after a round's end at which its average is taken in; 0 for rounds that end with it.
    """

    name: str
    branches: Branches
    common: Common
    own: Own
    replay: Replay
    adaptive: Adaptive | None = None
    schedules: Mapping[str, Callable[[int], Any]] = field(default_factory=dict)
    place: Place = field(default_factory=Place)
    walk: object | None = None
    left: bool = False
    resumed: bool = False
    shown: int = 0
    barred: list[str] = field(default_factory=list)
    showing: Showing | None = None
    evaluating: bool = False
    created: bool = False
    stale: Left | None = None
    at: int | None = None
    done: int = 0
    made: int = 0
    block: int = 0
    batches: int = 0
    last: bool = False
    leaving: bool = False
    fresh: bool = True
    noted: tuple[int, ...] = ()
    overlap: int = 0

    def __post_init__(self) -> None:
        self._k, self._alpha, self._start = (f"{self.name}_{key}" for key in ("k", "alpha", "start"))
        self._counters = [f"{self.name}_{counter}" for counter in (*COUNTERS, *IN_BLOCK)]
        self._several = self._watched = len(self.branches.local) > 1
        # Where something but α asks for φ.
        self._keeps_slow = self.common.outer is not None or self.common.displaced or self.adaptive is not None
        self._spread = len(self.branches.local) < self.common.branches

    @property
    def start(self) -> int:
        """Passes still before the first round."""
        start: int = self.branches.optimizer.param_groups[0][self._start]
        return start

    def alphas(self) -> list[float]:
        """α of every group."""
        key = self._alpha
        return [check_alpha(group[key]) for group in self.branches.optimizer.param_groups]

    def set(self, setting: str, value: Any) -> None:
        """Set something in every group."""
        for group in self.branches.optimizer.param_groups:
            group[f"{self.name}_{setting}"] = value

    def note(self) -> None:
        """Write the counters into the groups, where they have changed since."""
        now = self._counted()
        if now != self.noted:
            for group in self.branches.optimizer.param_groups:
                group.update(zip(self._counters, now, strict=True))
            self.noted = now

    def _counted(self) -> tuple[int, ...]:
        return (*self.place.counters(), self.done, self.made, self.batches)

    def resume(self) -> None:
        """Go on from the counters in the groups, outside of any loop."""
        group = self.branches.optimizer.param_groups[0]
        *place, self.done, self.made, self.batches = (group[counter] for counter in self._counters)
        self.place = Place(*place)
        self.walk, self.left, self.created, self.evaluating, self.stale, self.at = None, False, False, False, None, None
        self.showing = None
        self.resumed, self.fresh, self.noted = self.place.taken > 0, True, self._counted()
        self._watched = self._several
        self.replay.load(self.branches.optimizer.param_groups)

    def wait(self) -> None:
        """Have everything that is under way come, for a state that holds all of it."""

    def said(self) -> dict[str, Any]:
        """What a state dict says in the groups besides."""
        return {}

    # -- what may be done when ------------------------------------------------------------------------------------------------

    @property
    def contexts(self) -> int:
        """How many `averaged` contexts of this wrapper are open."""
        return self.shown - len(self.barred)

    @property
    def is_shown(self) -> bool:
        """Whether the model holds this wrapper's average to look at."""
        return self.contexts > 0 or self.evaluating

    def refuse_while_shown(self, call: str) -> None:
        """Raise ValueError while the model holds an average to look at."""
        if self.barred:
            raise ValueError(
                f"{call} was called inside {self.barred[-1]}, where the model holds an average: leave that block first"
            )
        if self.shown:
            raise ValueError(
                f"{call} was called inside averaged(), where the model holds an average: leave the context first"
            )
        if self.evaluating:
            raise ValueError(f"{call} was called after eval(), when the model holds an average: call train() first")

    def may_step(self) -> None:
        """Raise ValueError where a step would act on an average, on another branch's gradient, or in the middle of a loop that was left."""
        self.refuse_while_shown("step()")
        stale, self.stale = self.stale, None
        if stale is not None and stale.is_there():
            raise ValueError(
                f"the gradient in step() of branch {self.place.branch} was begun in another branch's turn, at other weights: call "
                "zero_grad() at the beginning of every turn; to accumulate over several minibatches, do so within a turn of around()"
            )
        if self.left:
            raise ValueError(
                f"{self._where_left()} and followed by step(): enter around() again, or end the round with average() or restart()"
            )

    def may_go_around(self) -> None:
        """Raise ValueError where a loop over branches would be inside another one; say so where it goes on with one that was left."""
        self.refuse_while_shown("around()")
        if self.walk is not None:
            raise ValueError(
                f"{self._where_left()} and entered again in its own body: run the loop to its end, or end the round with average() or "
                "restart()"
            )
        if self.left:
            warnings.warn(
                f"{self._where_left()}: it goes on with the branches that are left of that pass",
                RuntimeWarning,
                stacklevel=3,
            )
        self.left = False

    def _where_left(self) -> str:
        return f"around() was left at branch {self.place.branch} of {self.common.branches}"
