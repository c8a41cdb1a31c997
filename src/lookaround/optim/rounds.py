"""The loop all methods share, Algorithm 1 turned inside out: around (k inner steps of every branch), then the average.

The paper's loops are nested: for each round, for k steps, for all branches, a step; then the average. A training loop calls ``step()``
instead, so what comes before and after a step is here, and the place in the nest is kept (`lookaround.optim.cadence`).
"""

from lookaround.optim.adaptive import Adaptive
from lookaround.optim.checks import check_count, moves_nothing
from lookaround.optim.kept import SLOW
from lookaround.optim.run import Run


class Rounds(Run):
    """Rounds of k inner steps of d branches, each closed by an average step."""

    # -- the around step: what comes before and after a step of the inner optimizer --------------------------------------------

    def before_step(self) -> None:
        """The turn of a branch begins, and with the first one a round."""
        if self.shown or self.evaluating or self.left or self.stale is not None:
            self.may_step()
        if self.place.taken and self.walk is None:
            self.turn_ends()
        branches = self.branches
        groups = branches.optimizer.param_groups
        if self.fresh or branches.parameters.changed(groups):
            self.take_start()
            self.fresh = groups[0][self._start] > 0
        if self._watched or (self._several and branches.write_groups):
            self._watched = True
            branches.own_values.before_step(groups)
        if self.adaptive is not None:
            steps = self.place.step + self.place.taken + 1
            self.adaptive.before_step(branches.params(), last=steps >= groups[0][self._k])

    def before_other_step(self) -> None:
        """The same where more than the optimizer's code may write into groups: a closure, or what the compiler makes of its step."""
        self._watched = self._several
        self.before_step()

    def after_step(self) -> None:
        """The branch in the model has stepped. Outside of a loop over branches every step is a turn."""
        branches, place = self.branches, self.place
        if self._watched:
            branches.own_values.after_step(branches.optimizer.param_groups)
        if self.adaptive is not None:
            self._adapt(self.adaptive)
        if not place.round and self._has_created_state():
            return
        place.stepped()
        if self.walk is None:
            self.turn_ends()
        elif self.at is not None:
            self.done = self.at + 1
            self.made |= 1 << self.at

    def turn_ends(self) -> None:
        """Move on to the next branch; after the last, count the pass if any branch stepped in it, and end the round after k."""
        branches = self.branches
        group, local = branches.optimizer.param_groups[0], branches.local
        start = group[self._start]
        place, missed = self.place, 0
        if self._spread and place.branch + 1 == local.stop:
            self._pass_ends_among_others()
        following = place.following(local, start or group[self._k])
        if following is None:
            missed = self.end_round(place.skipped)
            if not missed:
                return
            following = local.start
        if self._several and not start:  # until then all branches are the weights that are there
            branches.load(following)
        place.turn_ends(local, missed)

    def _pass_ends_among_others(self) -> None:
        """Count what of this pass nobody here has made."""
        made, minibatches = (
            (self.made, self.block) if self.block else (int(self.place.most > 0), max(1, self.place.most))
        )
        self.place.pass_ends_among_others(made, minibatches)

    # -- a round ------------------------------------------------------------------------------------------------------------

    def take_start(self) -> None:
        """Take φ and the branches from the weights as they are now, at the first step of a round and for parameters new since.

        The first round starts from the weights at its first step, not from those at construction.
        """
        if self.start:
            return
        if self.created:
            self._forget()
        branches, place = self.branches, self.place
        if place.at_start(branches.local):
            self._begin_round()
        elif branches.parameters.changed(branches.optimizer.param_groups):
            branches.fork()

    def _begin_round(self) -> None:
        branches = self.branches
        if branches.model is not None:
            branches.find_buffers()
        if self.adaptive is not None:  # it reads φ during the round
            branches.follow()
        if not self._needs_slow():
            self.common.drop_slow()
        elif SLOW not in branches.weights:
            self._keep_slow()
        branches.fork()

    def _keep_slow(self) -> None:
        self.branches.follow()
        self.branches.keep_slow()

    def _needs_slow(self) -> bool:
        """Whether the average that ends a round beginning now asks for φ."""
        for group in self.branches.optimizer.param_groups:
            if group[self._alpha] < 1:
                return True
        return self._keeps_slow

    def end_round(self, skipped: int = 0) -> int:
        """The average step, and a new round; or how many of the round's steps are still to be made, as no process has made them.

        ``skipped`` has a bit for each that nobody here has made.
        """
        branches = self.branches
        local, groups = branches.local, branches.optimizer.param_groups
        if groups[0][self._start]:
            self.set("start", 0)
            self.place.round_ends(local, counts=False)
            return 0
        k = check_count("k", groups[0][self._k])
        alphas = self.alphas()
        branches.follow()
        missed = self.common.average(alphas, self.place.round, skipped, k)
        if not missed:
            branches.load(local.start, same_weights=True)
            self._new_round()
        return missed

    def end_here(self) -> None:
        """End the round now, wherever it is; at its start, nothing."""
        self.walk, self.left, self.stale = None, False, None
        if not self.place.at_start(self.branches.local) and not self.start:
            self.branches.reshard()
            self.end_round()
        self.end_block()

    @property
    def is_common(self) -> bool:
        """Whether what is in the model is where all branches begin."""
        return self.place.at_start(self.branches.local)

    @property
    def moves(self) -> bool:
        """Whether an average is anything but what is in the model."""
        return self.common.branches > 1 or SLOW in self.branches.weights

    def show(self) -> None:
        """Put what `end_here` would put into the model there, and nowhere else."""
        self.common.show(self.alphas(), self.place.round)

    def restart(self) -> None:
        """Begin a new round from what is in the model."""
        if self.start:
            return
        self.walk, self.left, self.stale = None, False, None
        local = self.branches.local
        unfinished = not self.place.at_start(local)
        self.common.restart(self.alphas(), unfinished=unfinished)
        self.branches.load(local.start, same_weights=True)
        self.end_block()
        self._new_round(counts=unfinished)

    def _new_round(self, *, counts: bool = True) -> None:
        """It is the first branch's turn in a new round; ``counts`` says whether the old one does."""
        self.place.round_ends(self.branches.local, counts=counts)
        self.fresh = True
        # What writes into groups does so from the first steps on, mostly: so the first round is watched whoever steps.
        self._watched = self._several and not self.place.round
        for setting, value in self.schedules.items():
            self.set(setting, value(self.place.round))

    def end_block(self) -> None:
        """The minibatches taken together are done with: the settings that hold are those after the last one."""
        self.replay.end(self.branches.optimizer.param_groups)
        self.at, self.done, self.made = None, 0, 0

    def block_size(self) -> int:
        """Minibatches that one branch may take before the next: those left of the round, if more than one branch is apart."""
        group = self.branches.optimizer.param_groups[0]
        return max(1, group[self._k] - self.place.step) if self._several and not group[self._start] else 1

    def _adapt(self, adaptive: Adaptive) -> None:
        """Choose α where a round ends with this step."""
        branches = self.branches
        alpha = adaptive.after_step(
            branches.optimizer.param_groups, branches.optimizer.state, branches.weights.values(SLOW), self.common.own
        )
        if alpha is not None:
            self.set("alpha", alpha)

    def _has_created_state(self) -> bool:
        """Whether the step just made was one that only creates state, for a checkpoint, and does not count."""
        self.common.prepare()
        if not (self.place.at_start(self.branches.local) and moves_nothing(self.branches.optimizer.param_groups)):
            return False
        self.created, self.fresh = not self.start, True
        self.branches.restart_idle()
        return True

    def _forget(self) -> None:
        """Drop what a step that only created state has taken from the weights: they may have been replaced since."""
        for rounds in (self, *self.branches.inside(self.branches.current).values()):
            rounds.created, rounds.fresh = False, True
            rounds.branches.clear(rounds.branches.local.start)
            rounds.common.own.clear()
