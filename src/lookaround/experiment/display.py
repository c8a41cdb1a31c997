"""What is seen while an experiment runs: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


class Display(ABC):
    """Follows an experiment of a known number of runs, whatever their lengths."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @abstractmethod
    def begin(self, runs: int) -> None:
        """The experiment starts, with this many runs to train."""

    @abstractmethod
    def run(self, label: str, done: int, total: int) -> None:
        """A run of ``total`` minibatches starts, or goes on after ``done`` of them."""

    @abstractmethod
    def minibatch(self, loss: float | None) -> None:
        """A minibatch is trained on; its mean loss, where it was fetched."""

    @abstractmethod
    def epoch(self, record: dict[str, Any]) -> None:
        """The run is evaluated."""

    @abstractmethod
    def note(self, text: str) -> None:
        """A line for the user."""

    @abstractmethod
    def close(self) -> None:
        """The experiment ended, well or not."""


class Progressed:
    """How much of an experiment is done, in runs: all of them have one budget, so all are taken to last equally long.

    Args:
        runs: to train.
        clock: gives seconds.
    """

    def __init__(self, runs: int, clock: Callable[[], float]) -> None:
        self._runs, self._clock, self._started = runs, clock, clock()
        self._before, self._skipped, self._begun = 0, 0.0, False
        self._done, self._total = 0, 1

    def run(self, done: int, total: int) -> None:
        """The next run begins."""
        self._before += self._begun
        self._begun = True
        self._skipped += done / total
        self._done, self._total = done, total

    def minibatch(self) -> None:
        """One more minibatch of the run is trained on."""
        self._done += 1

    @property
    def part(self) -> float:
        """Runs finished so far, with the part of the one that is being trained."""
        return self._before + self._done / self._total

    def left(self) -> float:
        """Seconds left, if it goes on as it did."""
        trained = max(self.part - self._skipped, 1e-9)
        return (self._clock() - self._started) / trained * (self._runs - self.part)


def leading(record: Mapping[str, Any]) -> str:
    """The metric that leads, of an evaluation."""
    name, value = next(iter(record["metrics"].items()))
    return f"{name} {value:.2f}"


class Lines(Display):
    """One line an evaluation, for logs and pipes.

    Args:
        write: takes a line of text.
        clock: gives seconds.
    """

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._write = write
        self._clock = clock

    def begin(self, runs: int) -> None:
        self._progress = Progressed(runs, self._clock)
        self._label = ""

    def run(self, label: str, done: int, total: int) -> None:
        self._label = label
        self._progress.run(done, total)

    def minibatch(self, loss: float | None) -> None:
        self._progress.minibatch()

    def epoch(self, record: dict[str, Any]) -> None:
        left = duration(self._progress.left())
        self._write(
            f"{self._label} | epoch {round(record['epoch'], 2):g} | loss {record['train_loss']:.4f} | {leading(record)} | {left} left"
        )

    def note(self, text: str) -> None:
        self._write(text)

    def close(self) -> None:
        """A line stands as it was written."""


class Bar(Display):
    """A live bar with the run, its loss and its last evaluation, and the time left for the whole experiment."""

    def __init__(self, console: Console) -> None:
        self._progress = _progress(console)
        self._task = self._progress.add_task("", start=False, total=None, loss="–", metric="")

    def begin(self, runs: int) -> None:
        self._done = Progressed(runs, time.monotonic)
        self._progress.update(self._task, total=runs)
        self._progress.start_task(self._task)
        self._progress.start()

    def run(self, label: str, done: int, total: int) -> None:
        self._done.run(done, total)
        self._progress.update(self._task, description=label, loss="–", metric="")

    def minibatch(self, loss: float | None) -> None:
        self._done.minibatch()
        shown = {} if loss is None else {"loss": f"{loss:.3f}"}
        self._progress.update(self._task, completed=self._done.part, **shown)  # type: ignore[arg-type]

    def epoch(self, record: dict[str, Any]) -> None:
        self._progress.update(self._task, metric=leading(record))

    def note(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        self._progress.stop()


def _progress(console: Console) -> Progress:
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TextColumn("{task.fields[metric]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
        console=console,
        transient=True,
    )


class Silent(Display):
    """On the processes that show nothing."""

    def begin(self, runs: int) -> None:
        """Shows nothing, as all of these."""

    def run(self, label: str, done: int, total: int) -> None:
        """See `begin`."""

    def minibatch(self, loss: float | None) -> None:
        """See `begin`."""

    def epoch(self, record: dict[str, Any]) -> None:
        """See `begin`."""

    def note(self, text: str) -> None:
        """See `begin`."""

    def close(self) -> None:
        """See `begin`."""


def display_for(console: Console) -> Display:
    """A live bar if the console is a terminal, else plain lines on the same stream."""
    if console.is_terminal:
        return Bar(console)
    return Lines(lambda text: print(text, file=console.file, flush=True))


def duration(seconds: float) -> str:
    """Seconds as minutes and seconds, or hours and minutes.

    Example:
        >>> duration(95), duration(7500)
        ('1:35', '2 h 05 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d}"
    return f"{minutes // 60} h {minutes % 60:02d} min"
