"""What every engine promises, and the one function that uses it: what is finished in the store is not done again."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from icl_bench.harness.training.fleet import pack
from icl_bench.runs.events import Reporter
from icl_bench.runs.record import RunRecord, RunResult
from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store import Store

FLEET_SIZE = {"cpu": 1, "cuda": 32}
"""Members trained together: a GPU is idle while one tiny model trains, a processor is not."""


class Engine(Protocol):
    """Something that runs fleets."""

    def submit(self, fleets: Sequence[Sequence[RunSpec]], store: Store, reporter: Reporter) -> Iterator[RunResult]:
        """Run the fleets and yield each result once, when it is committed, in whatever order they end.

        A worker that is lost is replaced and its fleet done again; what a run itself does wrong is its result.

        Raises:
            IclBenchError: where no worker can be had, or a run asks for something that the user must change.
            OSError: where the store can no longer be written.
        """

    def close(self) -> None:
        """Let the workers go; the engine may be used again, and then hires new ones."""


def run_all(
    specs: Sequence[RunSpec], store: Store, engine: Engine, fleet_size: int, reporter: Reporter
) -> list[RunRecord]:
    """Finish every run that is not finished yet, and read all of them back in the order asked for.

    Raises:
        StoreError: where the store cannot be written or a record in it cannot be read.
    """
    store.check_writable()
    missing = [spec for spec in specs if not store.has(spec.id)]
    reporter.planned(len(specs), len(specs) - len(missing))
    try:
        for _ in engine.submit(pack(missing, fleet_size), store, reporter):
            pass
        store.clear_up()  # lost workers leave checkpoints of fleets whose members were then done alone
    finally:
        reporter.closed()
    return [store.load(spec.id) for spec in specs]
