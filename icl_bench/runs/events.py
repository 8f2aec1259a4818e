"""Events of running fleets, and the protocol of those who receive them: progress bars, loggers, tests."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from icl_bench.runs.record import RunResult
from icl_bench.runs.spec import RunSpec


class Progress(NamedTuple):
    """The progress of a fleet, reported at each validation."""

    step: int
    """Number of updates done."""
    steps: int
    """Number of updates in all."""
    loss: list[float]
    """Mean training loss of each member since the last report, in nats."""
    accuracy: list[float]
    """Mean training accuracy of each member since the last report."""
    examples_per_second: float
    """Training examples per second since the start, summed over members."""
    seconds: float
    """Training time so far in seconds, without validation."""


Report = Callable[[Progress], None]
"""A receiver of the progress of one fleet."""


class Reporter(Protocol):
    """A receiver of events; several fleets may run at once, and each event names its fleet by its specifications.

    A class that inherits from this one ignores the events whose methods it does not define.
    """

    def planned(self, runs: int, done: int) -> None:
        """Receive the number of requested runs, and the number of those that the store holds already."""
        return

    def started(self, specs: Sequence[RunSpec]) -> None:
        """Receive the start of a fleet."""
        return

    def progressed(self, specs: Sequence[RunSpec], progress: Progress) -> None:
        """Receive the progress of a fleet."""
        return

    def lost(self, specs: Sequence[RunSpec], reason: str) -> None:
        """Receive the loss of a fleet's worker; unfinished runs of the fleet start again or finish as failed."""
        return

    def finished(self, results: Sequence[RunResult]) -> None:
        """Receive the results of runs that are committed to the store."""
        return

    def closed(self) -> None:
        """Receive the end of all events, after the last run or an interruption."""
        return


class SilentReporter(Reporter):
    """A reporter that ignores all events."""
