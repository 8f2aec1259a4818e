"""Run fleets in this process: nothing has to start, and a debugger reaches everything."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from icl_bench.harness.engines.base import ENGINES, Engine, EngineConfig
from icl_bench.runs.events import Reporter
from icl_bench.runs.record import RunResult
from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store import Store

if TYPE_CHECKING:
    from icl_bench.harness.training.trainer import Machine


@ENGINES.register("inline")
class Inline(EngineConfig):
    """Run fleets in this process, one after the other."""

    def start(self, machine: "Machine") -> "InlineEngine":
        """Return the running engine."""
        return InlineEngine(machine)


class InlineEngine(Engine):
    """The running engine: a loop over the fleets."""

    def __init__(self, machine: "Machine") -> None:
        self.machine = machine

    def submit(self, fleets: Sequence[Sequence[RunSpec]], store: Store, reporter: Reporter) -> Iterator[RunResult]:
        """Run the fleets in order and yield their results."""
        from icl_bench.harness.training.fleet import run_fleet

        for fleet in fleets:
            reporter.started(fleet)
            results = run_fleet(fleet, store, self.machine, partial(reporter.progressed, fleet))
            reporter.finished(results)
            yield from results
