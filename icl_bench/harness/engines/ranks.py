"""Train fleets in all ranks of a data-parallel command: the first rank decides and writes, the others train along."""

import json
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from icl_bench.errors import SpecError
from icl_bench.harness.engines.base import Agenda, Engine
from icl_bench.runs.events import Reporter
from icl_bench.runs.record import RunResult
from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store import Store

if TYPE_CHECKING:
    from icl_bench.harness.training.ranks import Ranks
    from icl_bench.harness.training.trainer import Machine

ENGINES_OF_RANKS = ("auto", "inline")
"""Engines that a command of several ranks may name: its processes are those that torchrun started."""


class FirstRank(Engine):
    """The engine of the first rank: it sends each fleet to the others, then trains it with them, in this process."""

    def __init__(self, machine: "Machine", ranks: "Ranks") -> None:
        self.machine, self.ranks, self.idle = machine, ranks, True

    def submit(self, agenda: Agenda, store: Store, reporter: Reporter) -> Iterator[RunResult]:
        """Run the fleets in order and yield their results; raise SpecError for layers from outside the package."""
        from icl_bench.harness.environment import kept_heap, one_thread
        from icl_bench.harness.interruption import deferred
        from icl_bench.harness.training.attempt import finish_fleet

        while agenda:
            fleet = agenda.take()
            if fleet[0].from_outside:
                raise SpecError(
                    f"several ranks train layers of the package; got {fleet[0].arch_label}; train it in one process"
                )
            reporter.started(fleet)
            self.idle = False
            self.ranks.share(json.dumps([spec.labelled() for spec in fleet]).encode())
            report = partial(reporter.progressed, fleet)
            with deferred(), one_thread(self.machine.device), kept_heap(self.machine.device):
                results = finish_fleet(fleet, store, self.machine, report, last=True)
            self.idle = True
            reporter.finished(results)
            yield from results

    def close(self) -> None:
        """Let the other ranks end; after an error they learn of it when this process ends."""
        if self.idle:
            self.ranks.share(b"")
            self.ranks.leave()


def train_along(machine: "Machine", ranks: "Ranks") -> None:
    """Train each fleet that the first rank sends, until it has none left; write nothing."""
    from icl_bench.harness.environment import kept_heap, one_thread
    from icl_bench.harness.interruption import deferred
    from icl_bench.harness.training.loop import TrainingLoop
    from icl_bench.harness.training.trainer import Trainer

    machine = machine._replace(keep=())
    while sent := ranks.share(b""):
        fleet = [RunSpec.model_validate(one) for one in json.loads(sent)]
        with deferred(), one_thread(machine.device), kept_heap(machine.device):
            TrainingLoop(Trainer(fleet, machine), lambda progress: None, lambda member, point: None).run()
    ranks.leave()
