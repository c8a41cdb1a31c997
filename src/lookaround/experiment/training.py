"""One method trained with one seed, from its last checkpoint or its start to its end."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lookaround.errors import DivergedError, InterruptedRunError
from lookaround.experiment.batches import Batches, Minibatch, stream_seed
from lookaround.experiment.checkpoints import (
    damaged,
    load_checkpoint,
    random_state,
    restore_random_state,
    save_checkpoint,
)
from lookaround.experiment.config import TrainConfig
from lookaround.experiment.display import Display
from lookaround.experiment.evaluation import Predict, Scores, evaluate
from lookaround.experiment.files import write_json
from lookaround.experiment.holdout import hold_out
from lookaround.experiment.interrupts import StopRequest
from lookaround.experiment.methods import METHODS, Method, Setting
from lookaround.experiment.networks import Architecture, save_network
from lookaround.experiment.records import Records
from lookaround.experiment.results import CHECKPOINT, MEMBER, NETWORK, RESULT, Divergence, Result
from lookaround.optim.checks import NotFiniteError
from lookaround.tasks.vision.data import ImageData

# Minibatches between two looks at the loss on an accelerator, which has to finish its queue for each.
_LOOK_EVERY = 20


class Training:
    """One run, in its own folder.

    Args:
        config: of the experiment.
        data: images on the training device.
        method: name of the method.
        seed: decides initial weights, minibatches and augmented copies; the method does not.
        folder: of the run; it exists. A checkpoint in it is gone on from.
        display: follows the run.

    Raises:
        UsageError: for a checkpoint that cannot be used.
        ValueError: for settings that the network or the method refuses.
    """

    def __init__(
        self, config: TrainConfig, data: ImageData, method: str, seed: int, folder: Path, display: Display
    ) -> None:
        self.config = config
        self.data, self.held_out = hold_out(data, config, method)
        self.device = data.train_images.device
        self.name, self.seed = method, seed
        self.folder = folder
        self.display = display
        self.batches = Batches(self.data, config, seed)
        self.architecture = Architecture.for_data(config.model, config.width, self.data)
        torch.manual_seed(stream_seed(seed, "weights"))
        self.model = self._network()
        self.method: Method = METHODS[method](self._setting())
        torch.manual_seed(stream_seed(seed, "training"))
        self.step = 0
        self._epoch = 0
        self.tally = torch.zeros(2, dtype=torch.float64, device=self.device)
        self._started = time.perf_counter()
        if self._checkpoint.exists():
            self._restore(load_checkpoint(self._checkpoint))

    def _network(self) -> nn.Module:
        layout = torch.channels_last if self.config.channels_last else torch.preserve_format
        model = self.architecture.build().to(self.device, memory_format=layout)  # type: ignore[call-overload]
        assert isinstance(model, nn.Module)
        if self.config.compile:
            model.compile()
        return model

    def _setting(self) -> Setting:
        held_out = None if self.held_out is None else self._validate
        return Setting(self.model, self.config, self._loss, self.batches, held_out)

    @property
    def total(self) -> int:
        """Minibatches of the whole run."""
        return self.config.epochs * self.batches.per_epoch

    @property
    def _checkpoint(self) -> Path:
        return self.folder / CHECKPOINT

    def train(self, stop: StopRequest) -> Result:
        """Trains to the end, and leaves result, network and checkpoint in the folder.

        Args:
            stop: is asked after every minibatch.

        Raises:
            InterruptedRunError: when ``stop`` says so; a checkpoint has been saved.
            DivergedError: when the loss is no longer finite.
            OSError: when a file cannot be written.
        """
        with Records(self.folder, self.step) as records:
            while self.step < self.total:
                self._train_epoch(records, stop)
        return self._finish()

    def _train_epoch(self, records: Records, stop: StopRequest) -> None:
        self._epoch, start = divmod(self.step, self.batches.per_epoch)
        for minibatch in self.batches.epoch(self._epoch, start):
            self._train_minibatch(minibatch)
            # The last minibatch's checkpoint comes after the epoch's record, or a kill in between would lose the record.
            if self.step % self.batches.per_epoch:
                self._save_if_due(stop)
        records.write(self._record(self._epoch))
        self.tally.zero_()
        self.save()
        self._stop_if_asked(stop)

    def _train_minibatch(self, minibatch: Minibatch) -> None:
        self.method.scale_learning_rate(self.method.learning_rate_factor(self.step, self.batches.per_epoch))
        with self._divergence_named():
            losses = self.method.train_minibatch(minibatch)
        look = self.device.type == "cpu" or (self.step + 1) % _LOOK_EVERY == 0
        shown = self._look(losses) if look else None
        finite = losses.isfinite()
        self.tally += torch.stack([losses.where(finite, 0.0).sum(), finite.sum()])
        self.step += 1
        self.display.minibatch(shown)

    def _look(self, losses: Tensor) -> float:
        """The mean loss over the copies; one branch may fail and be restarted by its method, all of them may not."""
        finite = [loss for loss in losses.tolist() if math.isfinite(loss)]
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
            f"{self.name} with seed {self.seed} diverged: {what} is not finite in epoch {self._epoch + 1}; "
            "try a lower learning rate or a longer warm-up"
        )

    def _save_if_due(self, stop: StopRequest) -> None:
        every = self.config.checkpoint_every
        if (every and self.step % every == 0) or stop() is not None:
            self.save()
        self._stop_if_asked(stop)

    def _stop_if_asked(self, stop: StopRequest) -> None:
        number = stop()
        if number is not None:
            raise InterruptedRunError(f"{self.name} with seed {self.seed} is saved at minibatch {self.step}", number)

    def _loss(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.amp):
            logits = model(images)
        return F.cross_entropy(logits.float(), labels, label_smoothing=self.config.label_smoothing)

    def _evaluate(self, images: Tensor, labels: Tensor) -> Scores:
        with self._divergence_named(), self.method.evaluation() as predict:
            scores = self._scores(predict, images, labels)
        if not math.isfinite(scores.nll):
            raise self._diverged("the loss of the averaged weights")
        return scores

    def _validate(self, predict: Predict) -> Scores:
        assert self.held_out is not None
        return self._scores(predict, *self.held_out)

    def _scores(self, predict: Predict, images: Tensor, labels: Tensor) -> Scores:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.amp):
            size = self.config.eval_batch_size
            return evaluate(predict, images, labels, prepare=self.batches.prepare, batch_size=size)

    def _record(self, epoch: int) -> dict[str, Any]:
        loss, count = self.tally.tolist()
        record: dict[str, Any] = {"step": self.step, "epoch": epoch + 1, "train_loss": loss / count}
        record |= asdict(self._evaluate(self.data.test_images, self.data.test_labels))
        if self.config.eval_train_loss:
            record["clean_train_loss"] = self._evaluate(self.data.train_images, self.data.train_labels).nll
        record["gradient_evaluations"] = self.method.gradient_evaluations
        record["seconds"] = round(self._seconds(), 3)
        self.display.epoch(record)
        return record

    def _seconds(self) -> float:
        return time.perf_counter() - self._started

    def _finish(self) -> Result:
        with self._divergence_named():
            self.method.finish()
        scores = self._evaluate(self.data.test_images, self.data.test_labels)
        result = Result(
            self.name,
            self.seed,
            scores.top1,
            scores.top5,
            scores.nll,
            self.method.gradient_evaluations,
            self.method.forward_passes,
            round(self._seconds(), 3),
        )
        notes = {"method": self.name, "seed": str(self.seed), "data": self.data.name}
        save_network(self.folder / NETWORK, self.model, self.architecture, notes)
        for index, member in enumerate(self.method.members()):
            save_network(self.folder / MEMBER.format(index), member, self.architecture, notes)
        write_json(self.folder / RESULT, asdict(result))
        return result

    def give_up(self, reason: str) -> Divergence:
        """Leaves in the folder that the run has diverged; its records and its last checkpoint stay beside that."""
        divergence = Divergence(
            self.name, self.seed, reason, self.method.gradient_evaluations, round(self._seconds(), 3)
        )
        write_json(self.folder / RESULT, asdict(divergence))
        return divergence

    def save(self) -> None:
        """Saves all that is needed to go on from here bit for bit."""
        state = {
            "step": self.step,
            "seconds": self._seconds(),
            "tally": self.tally,
            "model": self.model.state_dict(),
            "method": self.method.state_dict(),
            "random": random_state(),
        }
        save_checkpoint(self._checkpoint, state)

    def _restore(self, state: Mapping[str, Any]) -> None:
        try:
            self.model.load_state_dict(state["model"])
            self.method.load_state_dict(state["method"])
            restore_random_state(state["random"])
            self.tally.copy_(state["tally"])
            self.step = int(state["step"])
            self._epoch = max(0, self.step - 1) // self.batches.per_epoch
            self._started -= float(state["seconds"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise damaged(self._checkpoint, error) from error
