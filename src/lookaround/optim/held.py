"""A wrapper with branches as averages over time see it, which look for whoever holds a model's weights: `lookaround.holders.Holder`."""

from torch import Tensor

from lookaround.optim.rounds import Rounds
from lookaround.optim.wrapper import Wrapper


class Held(Wrapper):
    """Whether the model holds a branch, what is written to show the average, and who else has something in the model."""

    _run: Rounds

    @property
    def apart(self) -> bool:
        """Whether the model may hold something else than the average: a branch, in the middle of a round."""
        return not self._run.is_shown and not self._run.is_common

    @property
    def spread(self) -> bool:
        """Whether all processes have to enter `averaged` for it to show the average."""
        return not self._run.is_shown and len(self._run.branches.local) < self._get("branches")

    @property
    def shared(self) -> object:
        """What copies and proxies of this wrapper have in common with it."""
        return self._run

    @property
    def inside(self) -> list[object]:
        """The same of those it is wrapped around, in every branch."""
        branches = self._run.branches
        return [run for b in branches.local for run in branches.inside(b).values()] if branches.hold_rounds else []

    @property
    def written(self) -> list[Tensor]:
        """The tensors of the model that `averaged` writes to."""
        return [live for kept in self._run.branches.kept for live in kept.live]

    @property
    def going_around(self) -> bool:
        """Whether the body of a loop over `around` is running."""
        return self._run.walk is not None

    def bar(self, by: str) -> None:
        """Refuse steps and the like until `unbar`, naming who has something else in the model."""
        self._run.shown += 1
        self._run.barred.append(by)

    def unbar(self, by: str) -> None:
        """The end of `bar`."""
        self._run.barred.remove(by)
        self._run.shown -= 1
