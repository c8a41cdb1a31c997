"""Rounds whose average comes some passes after their end, while the next round has begun."""

from dataclasses import dataclass
from typing import Any

from lookaround.optim.checks import check_count
from lookaround.optim.kept import SLOW
from lookaround.optim.overlap import Overlap
from lookaround.optim.rounds import Rounds
from lookaround.optim.run import LEFT_OUT, UNDER_WAY


@dataclass(kw_only=True)
class Overlapped(Rounds):
    """Rounds of k passes over the branches, each closed by an average that is taken in ``overlap`` passes later.

    A pass counts for both whether or not a step was skipped in it: nobody has to be asked at a round's end. Buffers stay each branch's
    own: where an average is looked at or a round is ended with `average`, they go to their mean.

    Attributes:
        flight: the average under way.
        until: passes until it is taken in; 0 where none is under way.
    """

    flight: Overlap
    until: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        # Passes are counted as among other processes, whether there are some or not.
        self._spread = True

    @property
    def is_common(self) -> bool:
        """Whether what is in the model is where all branches begin."""
        return super().is_common and not self.until

    # -- the loop -------------------------------------------------------------------------------------------------------------

    def _pass_ends_among_others(self) -> None:
        passes = self.block or max(1, self.place.most)
        super()._pass_ends_among_others()
        self.place.skipped = 0
        if self.until > passes:
            self.until -= passes
        elif self.until:
            self._land()

    def end_round(self, skipped: int = 0) -> int:
        """The average sets out, and every branch goes on from where it is; one that is still under way is taken in before."""
        if self.start:
            return super().end_round(skipped)
        branches = self.branches
        check_count("k", branches.optimizer.param_groups[0][self._k])
        if self.until:
            self._land()
        self.flight.send(self.place.round)
        self.until = self.overlap
        branches.load(branches.local.start)
        self._new_round()
        return 0

    def _land(self) -> None:
        """Take in the average that is under way, that of the round before."""
        self.flight.land(self.alphas(), keep_slow=self._needs_slow())
        self.until = 0
        self.common.landed(self.flight.wait(), self.place.round - 1, self.flight.newcomers)

    def _keep_slow(self) -> None:
        """φ is where all branches begin: not while an average is under way. Buffers have none."""
        if not self.until:
            super()._keep_slow()
            self.branches.statistics.drop(SLOW)

    def _needs_slow(self) -> bool:
        return super()._needs_slow() or "alpha" in self.schedules

    def block_size(self) -> int:
        """No more minibatches than until the average under way is taken in."""
        return min(super().block_size(), self.until) if self.until else super().block_size()

    # -- what ends a round, or looks at it ----------------------------------------------------------------------------------------

    def end_here(self) -> None:
        """Take in what is under way, and end the round with an average that is waited for."""
        if self.until:
            self.branches.reshard()
            if super().is_common:
                self._land_here()
            else:
                self._land()
        if not super().is_common and not self.start:
            self.branches.reshard()
            super().end_round()
        super().end_here()

    def _land_here(self) -> None:
        """Nothing has been done since the average set out: all branches are φ afterwards, with common buffers."""
        self.flight.land(self.alphas(), keep_slow=self._needs_slow(), progress=False)
        self.until = 0
        self.common.landed(self.flight.wait(), self.place.round - 1, self.flight.newcomers)
        self.common.settle_buffers(self.place.round - 1)
        self.branches.load(self.branches.local.start, same_weights=True)
        self.fresh = True

    def restart(self) -> None:
        """Begin a new round from what is in the model: an average that is under way is dropped, after it has come."""
        if self.until:
            self.flight.wait()
            self.until = 0
        super().restart()

    @property
    def moves(self) -> bool:
        """Whether an average is anything but what is in the model."""
        return super().moves or (bool(self.until) and self._needs_slow())

    def show(self) -> None:
        """What `end_here` would put into the model, into the model alone."""
        if not self.until:
            super().show()
            return
        at_start, weights = super().is_common, self.branches.weights
        had_slow = SLOW in weights
        part = self.flight.wait()
        with self.flight.tried():
            self.flight.land(self.alphas(), keep_slow=self._needs_slow(), progress=not at_start)
            self.common.lend(part, self.place.round - 1, self.flight.newcomers)
            if at_start:
                self.common.settle_buffers(self.place.round - 1, here=True)
            else:
                super().show()
        if not had_slow:
            weights.drop(SLOW)

    def _has_created_state(self) -> bool:
        self.flight.prepare()
        return super()._has_created_state()

    # -- checkpoints ----------------------------------------------------------------------------------------------------------------

    def wait(self) -> None:
        """Have what is under way come, for a state that holds all of it."""
        if self.until:
            self.flight.wait()

    def said(self) -> dict[str, Any]:
        """What a state dict says of an average that is under way: passes until it is taken in, and a bit for each branch left out of it."""
        part = self.flight.wait() if self.until else []
        return {UNDER_WAY: self.until, LEFT_OUT: sum(1 << b for b, takes_part in enumerate(part) if not takes_part)}

    def resume(self) -> None:
        """Go on from the counters in the groups, outside of any loop."""
        super().resume()
        group = self.branches.optimizer.param_groups[0]
        self.until = group.get(f"{self.name}_{UNDER_WAY}", 0)
        left_out = group.get(f"{self.name}_{LEFT_OUT}", 0)
        self.flight.go_on([not left_out >> b & 1 for b in range(self.common.branches)])
        self.branches.statistics.drop(SLOW)
