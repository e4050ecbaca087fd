"""Stopping on SIGTERM and SIGINT: after the step that runs, with everything saved."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class TrainingStoppedError(Exception):
    """A signal stopped the training; everything that is needed to go on was saved."""


class Stop:
    """Notes the first signal; a second one is handled as before."""

    def __init__(self) -> None:
        self.asked = False
        self.before = {number: signal.signal(number, self) for number in (signal.SIGTERM, signal.SIGINT)}

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Called by the system when a signal comes."""
        self.asked = True
        self.restore()

    def restore(self) -> None:
        """Gives the signals back to whom they were before."""
        for number, handler in self.before.items():
            signal.signal(number, handler)


@contextmanager
def stopping_on_signals() -> Iterator[Stop]:
    """An object that knows whether SIGTERM or SIGINT came."""
    stop = Stop()
    try:
        yield stop
    finally:
        stop.restore()
