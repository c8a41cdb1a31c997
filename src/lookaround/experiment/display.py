"""What is seen while an experiment runs: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


class Display(ABC):
    """Follows an experiment of a known number of minibatches."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @abstractmethod
    def begin(self, minibatches: int) -> None:
        """The experiment starts, with this many minibatches over all its runs."""

    @abstractmethod
    def run(self, label: str, done: int) -> None:
        """A run starts, or goes on after ``done`` of its minibatches."""

    @abstractmethod
    def skip(self, minibatches: int) -> None:
        """The run has diverged: so many of its minibatches will not be trained on."""

    @abstractmethod
    def minibatch(self, loss: float | None) -> None:
        """A minibatch is trained on; its mean loss, where it was fetched."""

    @abstractmethod
    def epoch(self, record: dict[str, Any]) -> None:
        """An epoch is evaluated."""

    @abstractmethod
    def note(self, text: str) -> None:
        """A line for the user."""

    @abstractmethod
    def close(self) -> None:
        """The experiment ended, well or not."""


class Lines(Display):
    """One line an epoch, for logs and pipes.

    Args:
        write: takes a line of text.
        clock: gives seconds.
    """

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._write = write
        self._clock = clock

    def begin(self, minibatches: int) -> None:
        self._left_over = minibatches
        self._trained = 0
        self._label = ""
        self._started = self._clock()

    def run(self, label: str, done: int) -> None:
        self._label = label
        self._left_over -= done

    def skip(self, minibatches: int) -> None:
        self._left_over -= minibatches

    def minibatch(self, loss: float | None) -> None:
        self._left_over -= 1
        self._trained += 1

    def epoch(self, record: dict[str, Any]) -> None:
        self._write(
            f"{self._label} | epoch {record['epoch']} | loss {record['train_loss']:.4f} "
            f"| top-1 {record['top1']:.2f} % | {duration(self._left())} left"
        )

    def _left(self) -> float:
        return (self._clock() - self._started) / max(1, self._trained) * self._left_over

    def note(self, text: str) -> None:
        self._write(text)

    def close(self) -> None:
        """A line stands as it was written."""


class Bar(Display):
    """A live bar with the run, its loss and last test accuracy, and the time left for the whole experiment."""

    def __init__(self, console: Console) -> None:
        self._progress = _progress(console)
        self._task = self._progress.add_task("", start=False, total=None, loss="–", top1="–")

    def begin(self, minibatches: int) -> None:
        self._total = minibatches
        self._progress.update(self._task, total=minibatches)
        self._progress.start_task(self._task)
        self._progress.start()

    def run(self, label: str, done: int) -> None:
        self._total -= done
        self._progress.update(self._task, description=label, total=self._total, loss="–", top1="–")

    def skip(self, minibatches: int) -> None:
        self._total -= minibatches
        self._progress.update(self._task, total=self._total)

    def minibatch(self, loss: float | None) -> None:
        shown = {} if loss is None else {"loss": f"{loss:.3f}"}
        self._progress.update(self._task, advance=1, **shown)  # type: ignore[arg-type]

    def epoch(self, record: dict[str, Any]) -> None:
        self._progress.update(self._task, top1=f"{record['top1']:.2f} %")

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
        TextColumn("top-1 {task.fields[top1]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
        console=console,
        transient=True,
    )


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
