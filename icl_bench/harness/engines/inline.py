"""Fleets in this process, one after the other: nothing to start, and the debugger reaches everything."""

from collections.abc import Iterator, Sequence

from icl_bench.harness.training.fleet import Machine, run_fleet
from icl_bench.runs.events import OneFleet, Reporter
from icl_bench.runs.record import RunResult
from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store import Store


class InlineEngine:
    """One fleet after the other, in this process."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def submit(self, fleets: Sequence[Sequence[RunSpec]], store: Store, reporter: Reporter) -> Iterator[RunResult]:
        """Run the fleets in order."""
        for fleet in fleets:
            reporter.started(fleet)
            results = run_fleet(fleet, store, self.machine, OneFleet(reporter, fleet))
            reporter.finished(results)
            yield from results

    def close(self) -> None:
        """There are no workers."""
