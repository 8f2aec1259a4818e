"""Handle SIGINT, SIGTERM and SIGHUP: most work stops at once, but a fleet finishes its step and saves first."""

import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from icl_bench.outside import StopRequest

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(StopRequest):
    """A signal asked to stop. No `except Exception` catches it, so that no run records it as a failure of its own."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.number = number

    @property
    def status(self) -> int:
        """Exit status: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP."""
        return 128 + self.number


class Interruption:
    """The first signal that a process has received, and the number of `deferred` blocks that it is in."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.depth = 0
        self.concluded = False

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: raise the first, or only keep it inside `deferred`; end the process at the second.

        A process that has concluded its work ends at the first.
        """
        if self.received is not None or self.concluded:
            os._exit(128 + number)
        self.received = number
        if not self.depth:
            raise Interrupted(number)


CURRENT = Interruption()


def listen(signals: Iterable[signal.Signals] = STOPPING) -> None:
    """Handle these signals from now on, but no SIGHUP that the process was started to ignore, as by `nohup`.

    Only the main thread of a process may call this.
    """
    for number in signals:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, CURRENT.receive)
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = tell_lost


def tell_lost(lost: "sys.UnraisableHookArgs") -> None:
    """Print an exception that Python drops, as it does in callbacks of its own, unless it is a signal.

    The signal is kept, and raised again by the next `raise_if_interrupted`.
    """
    if not isinstance(lost.exc_value, Interrupted):
        sys.__unraisablehook__(lost)


def conclude() -> None:
    """End the process at once at the next signal: its work is done, and nothing of it can be interrupted."""
    CURRENT.concluded = True


@contextmanager
def deferred() -> Iterator[None]:
    """Keep a first signal until `raise_if_interrupted` is called, or until the block ends without an exception.

    Signals reach the main thread alone, so that the block of another thread defers none.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    CURRENT.depth += 1
    try:
        yield
    finally:
        CURRENT.depth -= 1
    if not CURRENT.depth:
        raise_if_interrupted()


def is_interrupted() -> bool:
    """Return True if a signal has asked to stop."""
    return CURRENT.received is not None


def received_signal() -> int | None:
    """Return the signal that has asked to stop, None if there was none."""
    return CURRENT.received


def adopt(number: int) -> None:
    """Act from now on as if this process had received a signal that another process of its command received."""
    CURRENT.received = CURRENT.received or number


def raise_if_interrupted() -> None:
    """Raise `Interrupted` if a signal has asked to stop."""
    if CURRENT.received is not None:
        raise Interrupted(CURRENT.received)
