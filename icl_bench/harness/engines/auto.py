"""Choose between this process and worker processes: on a CPU one thread a process, and a process for each core."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from icl_bench.harness.engines.base import ENGINES, Agenda, Engine, EngineConfig
from icl_bench.harness.engines.inline import InlineEngine
from icl_bench.harness.engines.local import Local
from icl_bench.isolation import usable_cores
from icl_bench.runs.events import Reporter
from icl_bench.runs.record import RunResult
from icl_bench.runs.store import Store

if TYPE_CHECKING:
    from icl_bench.harness.training.trainer import Machine

WORTH_WORKERS = 20.0
"""Estimated seconds of work in one process from which workers are started; their start takes seconds."""


@ENGINES.register("auto")
class Auto(EngineConfig):
    """Run fleets in this process; in one worker a core for several fleets on a CPU that take longer than 20 s."""

    def start(self, machine: "Machine") -> "AutoEngine":
        """Return the running engine."""
        return AutoEngine(machine)


class AutoEngine(Engine):
    """The running engine: this process, and workers from the first fleets that are worth them."""

    def __init__(self, machine: "Machine") -> None:
        self.machine = machine
        self.inline: Engine = InlineEngine(machine)
        self.local: Engine | None = None

    def submit(self, agenda: Agenda, store: Store, reporter: Reporter) -> Iterator[RunResult]:
        """Run the fleets where they end sooner, and yield their results."""
        if self.local is None and self.are_worth_workers(agenda):
            self.local = Local().start(self.machine)
        return (self.local or self.inline).submit(agenda, store, reporter)

    def are_worth_workers(self, agenda: Agenda) -> bool:
        """Return whether workers pay; never where OMP_NUM_THREADS is set, nor for layers that a program defines."""
        from icl_bench.harness.environment import THREADS
        from icl_bench.harness.estimate import estimate_runs

        if self.machine.device.type != "cpu" or THREADS in os.environ or len(agenda) < 2 or usable_cores() < 2:
            return False
        runs = [spec for fleet in agenda.fleets() for spec in fleet]
        if any(part.name.startswith("__main__:") for spec in runs for part in spec.arch):
            return False
        return estimate_runs(runs, self.machine.device.type).seconds > WORTH_WORKERS

    def close(self) -> None:
        """End the workers, if there are any."""
        self.inline.close()
        if self.local is not None:
            self.local.close()
            self.local = None
