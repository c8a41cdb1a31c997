"""``lookaround theory advice``: what k, α and d should do to a finished run, beside what short real runs then do."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional as F

from lookaround.commands.images import DataOptions, experiment_of, load_images
from lookaround.commands.parsing import parse, usage_errors
from lookaround.commands.runs import load_run, network_of, settings_of_run
from lookaround.errors import DivergedError
from lookaround.experiment.comparison import cpu_threads
from lookaround.landscape import flatten
from lookaround.optim import Lookahead, Lookaround
from lookaround.tasks.base import Batch, Minibatch
from lookaround.tasks.checks import check_ranges
from lookaround.tasks.vision.batches import ImageBatches
from lookaround.theory import CANDIDATES, Candidate, Prediction, advise, compare, format_advice

# No run is so long that it has trained on this epoch's minibatches.
_UNSEEN = 1_000_000
# Steps between two looks at the loss in a real run: whole rounds of every candidate.
_EVERY = 20


@dataclass(frozen=True, kw_only=True)
class AdviceOptions(DataOptions):
    """Predict what k, α and d do to a finished run, and print it beside what short real runs from its weights then do.

    The run's curvature and gradient noise are measured, and from them follows the steady-state loss of SGD, Lookahead and
    Lookaround (with no more branches than the experiment) at one constant learning rate. The loss is that of training, on
    augmented copies of the training images, with norm statistics fixed and without weight decay or label smoothing. A RUN is
    a folder OUT/METHOD/seed-SEED of lookaround train, or its safetensors file.

    lookaround theory advice runs/digits/sgd/seed-0 --lr 0.02
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run near a minimum, such as a finished one."""
    lr: float | None = None
    """Learning rate of all methods. None: a tenth of the experiment's peak."""
    momentum: float | None = None
    """Momentum of the inner SGD. None: the experiment's."""
    directions: int = 10
    """Sharpest directions to resolve; all others count as flat."""
    minibatches: int = 32
    """Minibatches from which the gradient noise is measured, at least 2."""
    images: int = 1000
    """Augmented images whose loss is the one that is predicted and measured."""
    steps: int = 400
    """Inner steps of each real run, of which the second half is measured. 0: predict alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, {"directions": (1, None), "minibatches": (2, None), "images": (1, None), "steps": (0, None)})
        if 0 < self.steps < 4 * _EVERY:
            raise ValueError(f"--steps must be 0 or at least {4 * _EVERY}, got {self.steps}")
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise ValueError(f"--lr must be above 0, got {self.lr}")
        if self.momentum is not None and not 0 <= self.momentum < 1:
            raise ValueError(f"--momentum must be at least 0 and below 1, got {self.momentum}")


def advice(words: Sequence[str]) -> None:
    """Runs ``lookaround theory advice``."""
    options = parse(AdviceOptions, words, "theory advice")
    run = load_run(options.run)
    model, architecture = network_of([run])
    plan = experiment_of([run], options)
    with cpu_threads(options.threads or plan.machine.threads), usage_errors():
        task = load_images(plan, architecture)
        settings = settings_of_run(run, task)
        lr = 0.1 * float(settings.optimizer["lr"]) if options.lr is None else options.lr
        momentum = float(settings.optimizer.get("momentum", 0.0)) if options.momentum is None else options.momentum
        batches = task.batches(run.seed or 0, settings.batch, settings.branches)
        problem = _Problem(model.to(task.device), batches, options)
        predictions = _predicted(problem, lr, momentum)
        print(
            f"{run.name}: learning rate {lr:g}, momentum {momentum:g}, minibatches of {problem.batches.units} images\n"
        )
        if not options.steps:
            print(format_advice(predictions))
            return
        measured = problem.measured(lr, momentum)
    print(format_advice(compare(predictions, measured.__getitem__)))
    print(
        f"\nmeasured: mean over the last {options.steps // 2} of {options.steps} steps, above the lowest loss of any run in"
    )
    print(
        "that time or of its weights' mean. Theory takes the minimum as quadratic and settled, and branches' noise as"
    )
    print("independent; with shared copies, branches share each minibatch.")


class _Problem:
    """A network near a minimum of the loss on augmented images, as a deterministic and as a noisy function of its weights.

    Args:
        model: in evaluation mode throughout, so that the loss is one function of the weights.
        batches: of the experiment, continued beyond its end.
        options: how much to measure.
    """

    def __init__(self, model: nn.Module, batches: ImageBatches, options: AdviceOptions) -> None:
        self.model = model.eval()
        self.batches = batches
        self.options = options
        self.branches = batches.branches
        self.candidates = [candidate for candidate in CANDIDATES if candidate.branches <= self.branches]
        self.fixed = self._fixed_copies()

    def _drawn(self, first_epoch: int) -> Iterator[Minibatch]:
        """Minibatches without end, from every other one of the epochs after those that any run has trained on."""
        per_epoch = self.batches.per_epoch
        for epoch in count(_UNSEEN + first_epoch, 2):
            yield from (Minibatch(self.batches, epoch * per_epoch + index) for index in range(per_epoch))

    def _fixed_copies(self) -> list[Batch]:
        needed = -(-self.options.images // self.batches.units)
        drawn = islice(self._drawn(0), needed)
        return [minibatch.copy(index % self.branches) for index, minibatch in enumerate(drawn)]

    def loss(self) -> Tensor:
        """The mean loss on the fixed augmented images, where the model is now."""
        sums = [F.cross_entropy(self.model(x), y, reduction="sum") for x, y, _ in self.fixed]
        return torch.stack(sums).sum() / sum(size for *_, size in self.fixed)

    def minibatch_losses(self) -> Iterator[Callable[[], Tensor]]:
        """The losses of a few minibatches, augmented like the branches' copies in turn."""
        for index, minibatch in enumerate(islice(self._drawn(1), self.options.minibatches)):
            yield partial(self._loss_on, minibatch.copy(index % self.branches))

    def _loss_on(self, batch: Batch) -> Tensor:
        return F.cross_entropy(self.model(batch.inputs), batch.targets)

    def measured(self, lr: float, momentum: float) -> dict[Candidate, float]:
        """The excess loss of a real run of every candidate from the same weights."""
        found = {candidate: self._run(candidate, lr, momentum) for candidate in self.candidates}
        lowest = min(least for _, least in found.values())
        return {candidate: loss - lowest for candidate, (loss, _) in found.items()}

    def _run(self, candidate: Candidate, lr: float, momentum: float) -> tuple[float, float]:
        """The mean loss in the second half of a run, and the lowest there: at a point or at the mean of its points."""
        start = deepcopy(self.model.state_dict())
        optimizer = _optimizer(candidate, self.model, lr, momentum)
        losses, points = [], []
        for step, minibatch in enumerate(islice(self._drawn(1), self.options.steps), start=1):
            self._step(optimizer, minibatch, step)
            if step > self.options.steps // 2 and step % _EVERY == 0:
                with torch.no_grad(), _averaged(optimizer):
                    losses.append(float(self.loss()))
                    points.append(flatten(self.model))
        with torch.no_grad():
            nn.utils.vector_to_parameters(torch.stack(points).mean(0), self.model.parameters())
            middle = float(self.loss())
        self.model.load_state_dict(start)
        if not all(map(torch.isfinite, torch.tensor([*losses, middle]))):
            raise DivergedError(f"the real run of {candidate} diverged; try a lower --lr")
        return statistics.fmean(losses), min(*losses, middle)

    def _step(self, optimizer: torch.optim.Optimizer, minibatch: Minibatch, step: int) -> None:
        """One step of every branch; branches take the augmentations in turn, so that all methods see the same ones."""
        around = optimizer.around() if isinstance(optimizer, Lookaround) else [0]
        for branch in around:
            optimizer.zero_grad()
            self._loss_on(minibatch.copy((step + branch) % self.branches)).backward()
            optimizer.step()


def _optimizer(candidate: Candidate, model: nn.Module, lr: float, momentum: float) -> torch.optim.Optimizer:
    inner = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    if candidate.method == "lookahead":
        return Lookahead(inner, k=candidate.k, alpha=candidate.alpha)
    if candidate.method == "lookaround":
        return Lookaround(inner, branches=candidate.branches, k=candidate.k, alpha=candidate.alpha)
    return inner


def _averaged(optimizer: torch.optim.Optimizer) -> AbstractContextManager[None]:
    return optimizer.averaged() if isinstance(optimizer, (Lookahead, Lookaround)) else nullcontext()


def _predicted(problem: _Problem, lr: float, momentum: float) -> list[Prediction]:
    with usage_errors():
        return advise(
            problem.loss,
            problem.minibatch_losses(),
            list(problem.model.parameters()),
            lr,
            count=problem.options.directions,
            momentum=momentum,
            candidates=problem.candidates,
        )
