"""Run fleets in this process, on a CPU in one thread: nothing has to start, and a debugger reaches everything.

Commands run fleets with code from outside the package in a worker process all the same, one after the other.
"""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from icl_bench.harness.engines.base import ENGINES, Agenda, Engine, EngineConfig
from icl_bench.harness.engines.local import Local
from icl_bench.isolation import is_isolating
from icl_bench.runs.events import Reporter
from icl_bench.runs.record import RunResult
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
    """The running engine: a loop over the fleets, with one worker for those that are not trusted to come back."""

    def __init__(self, machine: "Machine") -> None:
        self.machine = machine
        self.apart: Engine | None = None

    def close(self) -> None:
        """End the worker, if there is one."""
        if self.apart is not None:
            self.apart.close()

    def submit(self, agenda: Agenda, store: Store, reporter: Reporter) -> Iterator[RunResult]:
        """Run the fleets in order and yield their results."""
        from icl_bench.harness.environment import kept_heap, one_thread
        from icl_bench.harness.training.fleet import run_fleet

        while agenda:
            fleet = agenda.take()
            if fleet[0].from_outside and is_isolating():
                self.apart = self.apart or Local(workers=1).start(self.machine)
                yield from self.apart.submit(Agenda([fleet]), store, reporter)
                continue
            reporter.started(fleet)
            with one_thread(self.machine.device), kept_heap(self.machine.device):
                results = run_fleet(fleet, store, self.machine, partial(reporter.progressed, fleet))
            reporter.finished(results)
            yield from results
