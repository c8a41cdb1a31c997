"""What can end an experiment early, or an average in vain, apart from a bug."""

from __future__ import annotations


class UsageError(ValueError):
    """Something the user gave cannot be used; the message is one line that names it and says what to do."""


class DivergedError(ArithmeticError):
    """The loss is no longer a finite number; the message names the run and the epoch."""


class NotCommittedError(RuntimeError):
    """An average over processes that come and go was not committed: what it has written here has to be put back."""


class InterruptedRunError(Exception):
    """Training was asked to stop and has saved a checkpoint to go on from.

    Attributes:
        signal: the number of the signal that asked.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal
