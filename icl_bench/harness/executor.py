"""The executor: finishes runs with an engine and reads them back from a store; a finished run is never repeated."""

from collections.abc import Sequence
from dataclasses import dataclass

from icl_bench.harness.engines.base import Engine
from icl_bench.harness.training.fleet import pack
from icl_bench.runs.events import Reporter
from icl_bench.runs.record import RunRecord
from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store import Store


@dataclass(frozen=True)
class Executor:
    """A store, an engine that fills it, and a reporter that receives the progress."""

    store: Store
    engine: Engine
    fleet_size: int
    """Number of runs trained together."""
    reporter: Reporter

    def finish(self, specs: Sequence[RunSpec]) -> list[RunRecord]:
        """Finish the runs that the store lacks; return all records, in order; raise StoreError if the store fails."""
        self.store.check_writable()
        missing = [spec for spec in specs if not self.store.has(spec.id)]
        self.reporter.planned(len(specs), len(specs) - len(missing))
        try:
            for _ in self.engine.submit(pack(missing, self.fleet_size), self.store, self.reporter):
                pass
            self.store.clear_up()  # a lost worker leaves the checkpoints of a fleet whose members then run alone
        finally:
            self.reporter.closed()
        return [self.store.load(spec.id) for spec in specs]
