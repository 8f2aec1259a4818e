"""Run fleets in this process: nothing has to start, and a debugger reaches everything.

They run one after the other in one thread; on a GPU, several fleets run at once in threads (side_by_side.py).

Commands run fleets with code from outside the package in a worker process all the same, one after the other.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from pydantic import Field

from icl_bench.harness.engines.base import ENGINES, Agenda, Engine, EngineConfig
from icl_bench.harness.engines.local import Local
from icl_bench.harness.engines.side_by_side import MOST_AT_ONCE, SideBySide
from icl_bench.isolation import is_isolating
from icl_bench.runs.events import Reporter
from icl_bench.runs.record import RunResult
from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store import Store

if TYPE_CHECKING:
    from icl_bench.harness.training.trainer import Machine


@ENGINES.register("inline")
class Inline(EngineConfig):
    """Run fleets in this process, one after the other, or several at once on a GPU."""

    at_once: int = Field(default=MOST_AT_ONCE, ge=1, le=16)
    """Most fleets at once on a GPU, of which as many train at once as raise the sum of their speeds."""

    def start(self, machine: "Machine") -> "InlineEngine":
        """Return the running engine."""
        return InlineEngine(machine, self.at_once)


class InlineEngine(Engine):
    """The running engine: a loop over the fleets, with one worker for those that are not trusted to come back."""

    def __init__(self, machine: "Machine", at_once: int = MOST_AT_ONCE) -> None:
        self.machine = machine
        self.apart: Engine | None = None
        self.beside: Engine | None = None
        if machine.device.type == "cuda" and at_once != 1:
            self.beside = SideBySide(machine, self.run_alone, at_once)

    def close(self) -> None:
        """End the worker, if there is one."""
        if self.apart is not None:
            self.apart.close()

    def submit(self, agenda: Agenda, store: Store, reporter: Reporter) -> Iterator[RunResult]:
        """Run the fleets, in order or beside each other, and yield their results."""
        while agenda:
            if self.beside is not None and len(agenda) > 1:
                yield from self.beside.submit(agenda, store, reporter)
            else:
                yield from self.run_alone(agenda.take(), store, reporter)

    def run_alone(self, fleet: Sequence[RunSpec], store: Store, reporter: Reporter) -> Iterator[RunResult]:
        """Run a fleet in this thread, or in the worker; yield its results."""
        from icl_bench.harness.environment import kept_heap, one_thread
        from icl_bench.harness.training.fleet import run_fleet

        if fleet[0].from_outside and is_isolating():
            self.apart = self.apart or Local(workers=1).start(self.machine)
            yield from self.apart.submit(Agenda([fleet]), store, reporter)
            return
        reporter.started(fleet)
        with one_thread(self.machine.device), kept_heap(self.machine.device):
            results = run_fleet(fleet, store, self.machine, partial(reporter.progressed, fleet))
        reporter.finished(results)
        yield from results
