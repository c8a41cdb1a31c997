"""What users read of a wrapper with branches, and may schedule: settings and counters in the groups."""

from torch.optim import Optimizer

from lookaround.optim import begin
from lookaround.optim.checks import check_alpha, check_count
from lookaround.optim.run import LEFT_OUT, UNDER_WAY
from lookaround.optim.saved import Saved
from lookaround.optim.wrapper import Group


class Scheduled(Saved):
    """Settings of a wrapper with branches."""

    @property
    def k(self) -> int:
        """The synchronization period of this round. Setting it sets it in every group; the round ends when it is reached."""
        return int(self._get("k"))

    @k.setter
    def k(self, k: int) -> None:
        self._set("k", check_count("k", k))

    @property
    def alpha(self) -> float:
        """The weight of the fast weights in an average, of the first group. Setting it sets it in every group."""
        return float(self._get("alpha"))

    @alpha.setter
    def alpha(self, alpha: float) -> None:
        self._set("alpha", check_alpha(alpha))

    @property
    def outer(self) -> Optimizer | None:
        """The outer optimizer, whose settings may be read and scheduled; None where α moves φ."""
        return self._run.common.outer.optimizer if self._run.common.outer else None

    @property
    def overlap(self) -> int:
        """Passes over the branches after a round's end at which its average is taken in; 0 where the round ends with it."""
        return self._run.overlap

    @property
    def branches(self) -> int:
        """The number of branches, d."""
        return int(self._get("branches"))

    @property
    def local_branches(self) -> range:
        """The branches that this process holds, which `around` goes over: all of them without a mesh."""
        return self._run.branches.local

    @property
    def branch(self) -> int:
        """The branch whose weights are in the model now, from 0 to ``branches - 1``."""
        return self._run.place.branch

    @property
    def batches_done(self) -> int:
        """Minibatches of ``around(batches)`` that all branches are done with: where a loop that is resumed has to begin."""
        return self._run.batches

    def _fresh_settings(self) -> Group:
        fresh = {key: value for key, value in self.param_groups[0].items() if self._owns_setting(key)}
        fresh = {key: value for key, value in fresh.items() if not key.startswith(self._key("inner."))}
        fresh |= {self._key(key): value for key, value in begin.fresh(self._run.branches.local.start).items()}
        fresh |= {key: 0 for key in map(self._key, (UNDER_WAY, LEFT_OUT)) if key in fresh}
        return fresh | {self._key(key): value(0) for key, value in self._run.schedules.items()}
