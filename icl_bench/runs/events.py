"""Events of running fleets, and the protocol of those who receive them: progress bars, loggers, tests."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from icl_bench.runs.record import MetricPoint, RunResult
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
    began: int = 0
    """Step from which the fleet went on when it was interrupted before."""
    validations: Sequence[MetricPoint] = ()
    """Validation of each member at this step; empty in reports between validations."""


Report = Callable[[Progress], None]
"""A receiver of the progress of one fleet."""


class Reporter(Protocol):
    """A receiver of events; several fleets may run at once, and each event names its fleet by its specifications.

    A class that inherits from this one ignores the events whose methods it does not define.
    """

    def expected(self, later: Sequence[RunSpec]) -> None:
        """Receive the runs that are known to follow those of the next plan, at a rate that may still change."""
        return

    def planned(self, specs: Sequence[RunSpec], missing: Sequence[RunSpec]) -> None:
        """Receive the requested runs, and those of them that the store lacks."""
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
