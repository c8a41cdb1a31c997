"""Methods that are a torch optimizer: one trajectory, its average, or branches that take turns in the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from lookaround.buffers import Buffers
from lookaround.methods.base import Cost, Method, Setup
from lookaround.methods.norms import reestimate, reestimated
from lookaround.optim import Lookahead, Lookaround
from lookaround.optim.spread import whole_state_dict
from lookaround.tasks.base import Batch, Minibatch


class Trajectory(Method):
    """One weight vector that takes a step on each copy of the minibatch in turn.

    Args:
        setup: what to train.
        optimizer: over the model's parameters; its learning rates are the peaks of the schedule.

    Attributes:
        after_step: is called after each step, for what follows the trajectory.
    """

    def __init__(self, setup: Setup, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(setup)
        self.optimizer = optimizer
        self.after_step: Callable[[], None] | None = None
        self._peaks: list[float] = [group["lr"] for group in optimizer.param_groups]

    def train_minibatch(self, minibatch: Minibatch) -> Tensor:
        return torch.stack([self._step(minibatch.copy(branch)) for branch in self.turns(minibatch)])

    def turns(self, minibatch: Minibatch) -> Iterable[int]:
        """The copies in the order of their steps."""
        return range(minibatch.branches)

    def _step(self, batch: Batch) -> Tensor:
        losses: list[Tensor] = []

        def closure() -> float:
            self.optimizer.zero_grad()
            loss = self.setup.loss(self.setup.model, batch)
            loss.backward()
            self._clip()
            losses.append(loss.detach())
            return loss  # type: ignore[return-value]

        self.optimizer.step(closure)
        self.cost.gradients += len(losses)
        self.cost.units += len(losses) * batch.size
        if self.after_step is not None:
            self.after_step()
        return losses[0]

    def _clip(self) -> None:
        if self.setup.clip is not None:
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            clip_grad_norm_(parameters, self.setup.clip)

    def scale_learning_rate(self, factor: float) -> None:
        for group, peak in zip(self.optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = factor * peak

    def averaged(self) -> AbstractContextManager[None]:
        return nullcontext()

    def finish(self) -> None:
        """The trajectory's last point is the result."""

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "cost": asdict(self.cost)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        vars(self.cost).update(asdict(Cost(**state["cost"])))


class AveragedTrajectory(Trajectory):
    """One trajectory with an average written back into it every k steps."""

    optimizer: Lookahead | Lookaround

    @contextmanager
    def averaged(self) -> Iterator[None]:
        with self.optimizer.averaged(), reestimated(self.setup):
            yield

    def restart(self) -> None:
        self.optimizer.restart()

    def finish(self) -> None:
        self.optimizer.average()
        reestimate(self.setup)


def model_of_branches(setup: Setup) -> nn.Module | None:
    """What `Lookaround` is told of the model under ``norm_stats``."""
    return None if setup.norm_stats == "copy" else setup.model


class Branches(AveragedTrajectory):
    """d trajectories, each on its own copy of every minibatch, averaged every k minibatches."""

    optimizer: Lookaround

    def shared_buffers(self) -> Sequence[Tensor]:
        own = {id(buffer) for buffer in Buffers(self.model_of_branches()).now().values()}
        return [buffer for buffer in self.setup.model.buffers() if id(buffer) not in own]

    def model_of_branches(self) -> nn.Module | None:
        """The model, the persistent buffers of which each branch has of its own; None where all write the same ones, as they come."""
        return model_of_branches(self.setup)

    def at_once(self, position: int) -> int:
        optimizer = self.optimizer
        if self.setup.batches.read_ahead:
            return 1
        return max(1, optimizer.k - int(optimizer.param_groups[0][f"{optimizer.name}_step"]))

    def train_minibatch(self, minibatch: Minibatch) -> Tensor:
        (losses,) = self._train([minibatch], ())
        return losses

    def train_together(self, minibatches: Sequence[Minibatch], factors: Sequence[float]) -> Iterator[Tensor]:
        self.scale_learning_rate(factors[0])
        return self._train(minibatches, factors[1:])

    def _train(self, minibatches: Sequence[Minibatch], later: Sequence[float]) -> Iterator[Tensor]:
        """Trains with the learning rate that is set, and ``later`` with those of the minibatches after the first."""
        local = self.optimizer.local_branches
        losses: list[list[Tensor]] = [[] for _ in minibatches]
        for (place, minibatch), branch in self.optimizer.around(enumerate(minibatches)):
            losses[place].append(self._step(minibatch.copy(branch)))
            if branch == local.start and place < len(later):
                self.scale_learning_rate(later[place])
            if branch + 1 == local.stop and place + 1 < len(minibatches):
                yield torch.stack(losses[place])
        # The last one's when the loop has ended, with an average perhaps.
        yield torch.stack(losses[-1])

    @property
    def spread(self) -> bool:  # type: ignore[override]
        return len(self.optimizer.local_branches) < self.optimizer.branches

    def part_state_dict(self) -> dict[str, Any]:
        if not self.spread:
            return super().part_state_dict()
        local = self.optimizer.local_branches
        return {"local": local, "optimizer": self.optimizer.part_state_dict(), "cost": asdict(self.cost)}

    def whole_state_dict(self, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        if not self.spread:
            return super().whole_state_dict(parts)
        optimizer = whole_state_dict([(part["local"], part["optimizer"]) for part in parts], self.optimizer.name)
        cost = {key: sum(part["cost"][key] for part in parts) for key in asdict(self.cost)}
        return {"optimizer": optimizer, "cost": cost}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if not self.spread:
            super().load_state_dict(state)
            return
        self.optimizer.load_whole(state["optimizer"])
        # The first process goes on counting; the sum over processes is what was spent.
        spent = Cost(**state["cost"]) if not self.optimizer.local_branches.start else Cost()
        vars(self.cost).update(asdict(spent))
