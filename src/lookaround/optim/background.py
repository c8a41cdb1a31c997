"""A call in a thread of its own: what it gives or raises is had when it is waited for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


class Background(Generic[T]):
    """A call that has begun, and goes on beside whoever made it.

    On an accelerator it sees everything that was queued on the current stream before, runs on a stream of its own, and is done when
    that is. The thread is waited for when the program ends, so a call has to end by itself.

    Args:
        call: made once.
        device: what it computes on.

    >>> Background(lambda: 2 + 3, torch.device("cpu")).wait()
    5
    """

    def __init__(self, call: Callable[[], T], device: torch.device) -> None:
        self._call, self._device = call, device
        self._answer: list[T] = []
        self._error: BaseException | None = None
        self._since = None if device.type == "cpu" else torch.accelerator.current_stream(device).record_event()
        self._thread = Thread(target=self._run, name="lookaround average")
        self._thread.start()

    def _run(self) -> None:
        try:
            with self._beside():
                self._answer.append(self._call())
        except BaseException as error:
            self._error = error

    @contextmanager
    def _beside(self) -> Iterator[None]:
        if self._since is None:
            yield
            return
        stream = torch.Stream(self._device)
        with stream:
            stream.wait_event(self._since)
            yield
            stream.synchronize()

    def settle(self) -> None:
        """Wait for its end, however it ends."""
        self._thread.join()

    def wait(self) -> T:
        """What the call gave, as soon as it is there; as often as it is asked for.

        Raises:
            Exception: what the call raised.
        """
        self.settle()
        if self._error is not None:
            raise self._error
        return self._answer[0]
