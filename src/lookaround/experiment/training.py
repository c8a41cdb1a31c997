"""One method trained with one seed, from its last checkpoint or its start to its end."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lookaround.errors import DivergedError, InterruptedRunError
from lookaround.experiment.checkpoints import (
    damaged,
    load_checkpoint,
    random_state,
    restore_random_state,
    save_checkpoint,
)
from lookaround.experiment.display import Display
from lookaround.experiment.files import write_json
from lookaround.experiment.folder import task_digest
from lookaround.experiment.interrupts import StopRequest
from lookaround.experiment.order import Order
from lookaround.experiment.records import NoRecords, Records
from lookaround.experiment.results import CHECKPOINT, MEMBER, NETWORK, RESULT, Result
from lookaround.experiment.running import Prepared, new_method, new_network
from lookaround.methods import Spec
from lookaround.optim.checks import NotFiniteError
from lookaround.tasks.base import Minibatch, Predict
from lookaround.tasks.streams import stream_seed

# Minibatches between two looks at the loss on an accelerator, which has to finish its queue for each.
_LOOK_EVERY = 20
# Minibatches that are trained on together, at most: who asks for a stop waits for their end.
_AT_ONCE = 5


class Training:
    """One run, in its own folder.

    Args:
        prepared: the experiment, its data loaded.
        spec: the method.
        seed: decides initial weights, minibatches and augmented copies; the method does not.
        folder: of the run; it exists. A checkpoint in it is gone on from.
        display: follows the run.

    Raises:
        UsageError: for a checkpoint that cannot be used, or settings that the method refuses.
    """

    def __init__(self, prepared: Prepared, spec: Spec, seed: int, folder: Path, display: Display) -> None:
        self.prepared, self.task = prepared, prepared.task
        self.label, self.seed = spec.label, seed
        self.folder = folder
        self.display = display
        self.team = prepared.team
        self.model = new_network(prepared, seed)
        self.method, self.resolved = new_method(prepared, spec, seed, self.model)
        self.batches, self.total = self.method.setup.batches, self.method.setup.total
        torch.manual_seed(self._training_seed())
        self.step = 0
        self._order = Order(self.method, self.team)
        self.tally = torch.zeros(2, dtype=torch.float64, device=self.task.device)
        self._ends = self._evaluation_steps()
        self._started = time.perf_counter()
        if self._checkpoint.exists():
            self._restore(load_checkpoint(self._checkpoint))

    def _training_seed(self) -> int:
        """Of what is random inside a network. Processes that share the work draw numbers of their own."""
        own = (self.team.rank,) if self.method.spread and not self.team.first else ()
        return stream_seed(self.seed, "training", *own)

    def _evaluation_steps(self) -> list[int]:
        """After how many minibatches the run is evaluated: evenly spread, the last at its end."""
        count = self.prepared.plan.budget.evaluations or max(1, round(self.prepared.epochs))
        return sorted({max(1, round(part * self.total / count)) for part in range(1, count + 1)})

    @property
    def _checkpoint(self) -> Path:
        return self.folder / CHECKPOINT

    @property
    def epoch(self) -> float:
        """Epochs of the budget so far."""
        return self.step * self.prepared.epochs / self.total

    def train(self, stop: StopRequest) -> Result:
        """Trains to the end, and leaves result, network and checkpoint in the folder.

        Args:
            stop: is asked after every minibatch; where branches take several at once, after those (five at most).

        Raises:
            InterruptedRunError: when ``stop`` says so; a checkpoint has been saved.
            DivergedError: when the loss is no longer finite.
            OSError: when a file cannot be written.
        """
        with Records(self.folder, self.step) if self.team.first else NoRecords() as records:
            for end in self._ends:
                if end > self.step:
                    self._train_until(end, records, stop)
        return self._finish()

    def _train_until(self, end: int, records: Records | NoRecords, stop: StopRequest) -> None:
        while self.step < end:
            self._train(self._next(end))
            # The last minibatch's checkpoint comes after the record, or a kill in between would lose the record.
            if self.step < end:
                self._save_if_due(stop)
        records.write(self._record())
        self.tally.zero_()
        self.save()
        self._stop_if_asked(stop)

    def _next(self, end: int) -> list[Minibatch]:
        """The minibatches that are trained on together: up to a look at the run, to a checkpoint, and to the end of a round."""
        most = min(_AT_ONCE, end - self.step, self.method.at_once(self.step))
        if every := self.prepared.plan.machine.checkpoint_every:
            most = min(most, every - self.step % every)
        if self._order.matters is not False:
            most = 1
        return [Minibatch(self.batches, position) for position in range(self.step, self.step + most)]

    def _train(self, minibatches: Sequence[Minibatch]) -> None:
        factors = [self.method.learning_rate_factor(minibatch.position) for minibatch in minibatches]
        with self._divergence_named(), self._order.watched(len(minibatches)):
            for losses in self.method.train_together(minibatches, factors):
                self._count(losses)

    def _count(self, losses: Tensor) -> None:
        """A minibatch has been trained on."""
        look = self.task.device.type == "cpu" or (self.step + 1) % _LOOK_EVERY == 0
        shown = self._look(losses) if look else None
        finite = losses.isfinite()
        self.tally += torch.stack([losses.where(finite, 0.0).sum(), finite.sum()])
        self.step += 1
        self.display.minibatch(shown)

    def _look(self, losses: Tensor) -> float | None:
        """The mean loss over the copies; one branch may fail and be restarted by its method, all of them may not."""
        finite = [loss for loss in losses.tolist() if math.isfinite(loss)]
        if self.method.spread:  # others may be well; the average finds out whether any is
            return statistics.fmean(finite) if finite else None
        if not finite:
            raise self._diverged("the training loss")
        return statistics.fmean(finite)

    @contextmanager
    def _divergence_named(self) -> Iterator[None]:
        """What finds nothing finite to go on with raises NotFiniteError, as for a wrong value; here it is a run that diverged."""
        try:
            yield
        except NotFiniteError as error:
            raise self._diverged(error.what) from error

    def _diverged(self, what: str) -> DivergedError:
        return DivergedError(
            f"{self.label} with seed {self.seed} diverged: {what} is not finite in epoch {math.floor(self.epoch) + 1}; "
            "try a lower learning rate or a longer warm-up"
        )

    def _save_if_due(self, stop: StopRequest) -> None:
        every = self.prepared.plan.machine.checkpoint_every
        number = self.team.agreed(stop())
        if (every and self.step % every == 0) or number is not None:
            self.save()
        self._stop(number)

    def _stop_if_asked(self, stop: StopRequest) -> None:
        self._stop(self.team.agreed(stop()))

    def _stop(self, number: int | None) -> None:
        if number is not None:
            raise InterruptedRunError(f"{self.label} with seed {self.seed} is saved at minibatch {self.step}", number)

    def _evaluate(self, predict: Predict, split: str) -> dict[str, float]:
        scores = self.prepared.scores(predict, split)
        if not all(map(math.isfinite, scores.values())):
            raise self._diverged("the loss of the averaged weights")
        return scores

    def _averaged(self, split: str) -> dict[str, float]:
        with self._divergence_named(), self.method.evaluation() as predict:
            return self._evaluate(predict, split)

    def _record(self) -> dict[str, Any]:
        loss, count = (self.team.total(self.tally) if self.method.spread else self.tally).tolist()
        budget = self.prepared.plan.budget
        record: dict[str, Any] = {"step": self.step, "epoch": round(self.epoch, 6), "train_loss": loss / count}
        record["metrics"] = self._averaged(budget.score)
        if budget.plain:
            with self.method.plain() as predict:
                record["plain"] = self._evaluate(predict, budget.score)
        if budget.eval_train:
            record["train"] = self._averaged("train")
        record |= self._cost()
        self.display.epoch(record)
        return record

    def _cost(self) -> dict[str, Any]:
        cost = torch.tensor([self.method.cost.units, self.method.cost.gradients])
        units, gradients = (self.team.total(cost) if self.method.spread else cost).tolist()
        return {"spent": units, "gradient_evaluations": gradients, "seconds": round(self._seconds(), 3)}

    def _seconds(self) -> float:
        return time.perf_counter() - self._started

    def _finish(self) -> Result:
        with self._divergence_named():
            self.method.finish()
        metrics = self._averaged(self.prepared.plan.budget.score)
        if self.team.first:
            self._write_networks()
        return self._result(metrics, None)

    def _write_networks(self) -> None:
        notes = {"method": self.label, "seed": str(self.seed)}
        self.task.save(self.folder / NETWORK, self.model, notes)
        for number, member in enumerate(self.method.members(), start=1):
            self.task.save(self.folder / MEMBER.format(number), member, notes)

    def give_up(self, reason: str) -> Result:
        """Leaves in the folder that the run has diverged; its records and its last checkpoint stay beside that."""
        return self._result(None, reason)

    def _result(self, metrics: Mapping[str, float] | None, diverged: str | None) -> Result:
        result = Result(
            method=self.label,
            settings=self.resolved.as_json(),
            seed=self.seed,
            task=task_digest(self.task.identity()),
            split=self.prepared.plan.budget.score,
            metrics=metrics,
            diverged=diverged,
            unit=self.task.unit,
            budget=self.prepared.budget,
            forward_passes=self.method.forward_passes,
            **self._cost(),
        )
        if self.team.first:
            write_json(self.folder / RESULT, asdict(result))
        return result

    def save(self) -> None:
        """Saves all that is needed to go on from here bit for bit, on as many processes; the first one writes."""
        method = self._method_state()
        random = self.team.gathered(random_state())
        tally = self.team.total(self.tally) if self.method.spread else self.tally
        if not self.team.first:
            return
        state = {
            "step": self.step,
            "seconds": self._seconds(),
            "tally": tally,
            "model": self.model.state_dict(),
            "method": method,
            "random": random[0],
            "order_matters": self._order.matters,
            "random_of_others": random[1:] if self.method.spread else [],
        }
        save_checkpoint(self._checkpoint, state)

    def _method_state(self) -> dict[str, Any]:
        """The method's state as one process has it, whatever the number of processes; of use on the first alone."""
        if not self.method.spread:
            return self.method.state_dict()
        parts = self.team.gathered(self.method.part_state_dict())
        return self.method.whole_state_dict(parts) if parts else {}

    def _restore_random(self, state: Mapping[str, Any]) -> None:
        """Each process its own, where as many have saved."""
        others = state.get("random_of_others", [])
        if self.team.first or not self.method.spread:
            restore_random_state(state["random"])
        elif len(others) == self.team.size - 1:
            restore_random_state(others[self.team.rank - 1])

    def _restore(self, state: Mapping[str, Any]) -> None:
        try:
            self.model.load_state_dict(state["model"])
            self.method.load_state_dict(state["method"])
            self._restore_random(state)
            self._order.matters = state.get("order_matters")
            if self.team.first or not self.method.spread:
                self.tally.copy_(state["tally"])
            self.step = int(state["step"])
            self._started -= float(state["seconds"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise damaged(self._checkpoint, error) from error
