"""Figures drawn beside each other, in processes forked from this one, which know what it knows; nothing is pickled."""

import multiprocessing
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from icl_bench.isolation import usable_cores

Draw = Callable[[], bytes | None]
MOST_PROCESSES = 8
"""Most processes that draw: a section has some ten figures, each of a fifth of a second."""
PATIENCE = 30.0
"""Seconds until a figure that has not come is drawn here: a fork may wait for ever for a lock of another thread."""


@contextmanager
def drawn_ahead(draws: Sequence[Draw]) -> Iterator[list[Draw]]:
    """Begin to draw figures in processes, one a core; yield functions that wait for each, to be called in order.

    Where there is one core, or no fork without harm, they draw themselves, as they do where a process ended without its
    figure, or did not end: an error is raised by them.
    """
    cores = usable_cores() if sys.platform == "linux" else 1
    count = min(cores, MOST_PROCESSES, len(draws))
    if count < 2:
        yield list(draws)
        return
    started = [fork(draws[i::count]) for i in range(count)]

    def received(i: int) -> bytes | None:
        connection = started[i % count][1]
        with suppress(EOFError, OSError):
            if connection.poll(PATIENCE):
                return connection.recv_bytes() or None
            connection.close()  # what came later would be taken for the next figure
        return draws[i]()

    try:
        yield [partial(received, i) for i in range(len(draws))]
    finally:
        for process, connection in started:
            process.kill()
            process.join()
            connection.close()


def fork(draws: Sequence[Draw]) -> tuple[BaseProcess, Connection]:
    """Start a process that sends these figures; return it, and the end of the connection on which they arrive."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=send, args=(theirs, draws), daemon=True)
    with warnings.catch_warnings(), theirs:
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, whose locks nothing that draws takes
        process.start()
    return process, ours


def send(connection: Connection, draws: Sequence[Draw]) -> None:
    """Draw figures and send each, no bytes where it shows nothing; an interrupt is for the process that waits."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with connection:
        for draw in draws:
            connection.send_bytes(draw() or b"")
