"""A wrapper whose branches may be spread over processes, as checkpoints of any number of processes see it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lookaround.optim.branched import Branched
from lookaround.optim.whole import Labels, Live, merged, part, taken
from lookaround.optim.wrapper import Group
from lookaround.tensors import copy_


class Spread(Branched):
    """Saves its part of the state of all branches, and takes its part of what others have saved.

    ``state_dict()`` is this process's own, for going on with the same placement from any point of the loop. What is here is for going on
    with another number of processes, and stands between two passes over the branches.
    """

    def part_state_dict(self) -> Group:
        """This process's part of what one process with all branches would have for its ``state_dict()``.

        On the process that holds branch 0 the model's own state is the other part; that of the others is in here.

        Raises:
            ValueError: inside a loop over `around`, or of `averaged`.
        """
        run = self._run
        self._run.refuse_while_shown("part_state_dict()")
        if run.place.taken or run.place.most or run.place.branch != run.branches.local.start:
            raise ValueError(
                f"part_state_dict() was called in the turn of branch {run.place.branch}: save after the loop over around(), when all "
                "branches have taken the same steps"
            )
        return part(self.state_dict(), Labels(self.name), run.branches.local, self._live())

    def _live(self) -> Live:
        """What is in the model, where the model's own state in a checkpoint is another branch's."""
        branches, params = self._run.branches, self.params()
        first = next((i for i, p in enumerate(params) if p.requires_grad), 0)
        if not branches.local.start or not (self._run.place.round or self._run.place.step):
            return Live(first=first)
        branches.follow()
        numbers = {p: number for number, p in enumerate(params)}
        weights = {numbers[p]: p.detach() for p in branches.weights.live}
        return Live(weights, self._live_buffers(), first)

    def _live_buffers(self) -> dict[str, Tensor]:
        branches = self._run.branches
        return {
            str(k): b
            for kept in (branches.statistics, branches.counters)
            for k, b in zip(kept.keys, kept.live, strict=True)
        }

    def load_parts(self, parts: Sequence[tuple[range, Group]]) -> None:
        """Go on from the parts that processes have saved; the model has its part, branch 0's weights, by now.

        Args:
            parts: the branches that a process held, and its `part_state_dict`. They may lack what other processes want.

        Raises:
            ValueError: see ``load_state_dict()``.
        """
        self.load_whole(merged(parts, Labels(self.name)))

    def load_whole(self, state_dict: Group) -> None:
        """Go on from the ``state_dict()`` of one process with all branches, saved between two passes; the model has its part by now.

        Raises:
            ValueError: see ``load_state_dict()``.
        """
        own, live = taken(state_dict, Labels(self.name), self._run.branches.local)
        self.load_state_dict(own)
        params, buffers = self.params(), self._live_buffers()
        copy_([params[number] for number in live.weights], list(live.weights.values()))
        with torch.no_grad():
            for name, value in live.buffers.items():
                buffers[name].copy_(value)

    def wants(self, label: str) -> bool:
        """Whether this process takes what stands under a label of the whole."""
        return Labels(self.name).is_wanted(label, self._run.branches.local)


def whole_state_dict(parts: Sequence[tuple[range, Group]], name: str) -> Mapping[str, Any]:
    """Parts put together: the state dict of one process with all branches."""
    return merged(parts, Labels(name))
