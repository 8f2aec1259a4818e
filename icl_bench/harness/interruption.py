"""SIGINT and SIGTERM: work that can be cut anywhere is cut at once, a fleet finishes its step and saves first."""

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A signal asked to stop. It passes every `except Exception`, so that no run records it as its own failure."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.number = number

    @property
    def status(self) -> int:
        """Exit status: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.number


class Interruption:
    """What a process has been asked, and whether it may stop at once."""

    def __init__(self) -> None:
        self.noted: int | None = None
        self.depth = 0

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: the second ends the process, the first is raised, or noted where work is to finish."""
        if self.noted is not None:
            os._exit(128 + number)
        self.noted = number
        if not self.depth:
            raise Interrupted(number)


CURRENT = Interruption()


def listen(signals: Iterable[signal.Signals] = STOPPING) -> None:
    """Handle these signals from now on; to be called in the main thread of a process."""
    for number in signals:
        signal.signal(number, CURRENT.receive)


@contextmanager
def deferred() -> Iterator[None]:
    """While inside, a first signal is only noted; `check` raises it, and so does leaving without an exception."""
    CURRENT.depth += 1
    try:
        yield
    finally:
        CURRENT.depth -= 1
    if not CURRENT.depth:
        check()


def noted() -> bool:
    """Whether a signal has asked to stop."""
    return CURRENT.noted is not None


def check() -> None:
    """Raise `Interrupted` where a signal has asked to stop."""
    if CURRENT.noted is not None:
        raise Interrupted(CURRENT.noted)
