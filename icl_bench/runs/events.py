"""What the harness tells while it works; the command line shows it, tests collect it. Nothing here needs torch."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from icl_bench.runs.record import RunResult
from icl_bench.runs.spec import RunSpec


class Progress(NamedTuple):
    """How far a fleet has come."""

    step: int
    steps: int
    loss: list[float]
    """Mean training loss of each member since the last report."""
    accuracy: list[float]
    """Mean training accuracy of each member since the last report."""
    examples_per_second: float
    """Training examples a second since the start, summed over members."""
    seconds: float
    """Training time so far, validation left out."""


class Reporter(Protocol):
    """Receives the course of events; several fleets may be under way at once, each named by its specifications."""

    def planned(self, runs: int, done: int) -> None:
        """`runs` runs were asked for, `done` of them are finished in the store already."""

    def started(self, specs: Sequence[RunSpec]) -> None:
        """A fleet starts."""

    def progressed(self, specs: Sequence[RunSpec], progress: Progress) -> None:
        """The fleet has come so far."""

    def lost(self, specs: Sequence[RunSpec], reason: str) -> None:
        """The worker of the fleet is gone; what the fleet lacks starts again, or is given up and finishes so."""

    def finished(self, results: Sequence[RunResult]) -> None:
        """Runs of a fleet are done and committed."""

    def closed(self) -> None:
        """Nothing more comes: all is done, or it was interrupted."""


class FleetReporter(Protocol):
    """Receives the progress of one fleet."""

    def progressed(self, progress: Progress) -> None:
        """The fleet has come so far."""


class OneFleet(NamedTuple):
    """Passes on the progress of one fleet under its name."""

    reporter: Reporter
    specs: Sequence[RunSpec]

    def progressed(self, progress: Progress) -> None:
        """Name the fleet."""
        self.reporter.progressed(self.specs, progress)
