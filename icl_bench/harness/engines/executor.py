"""Fill a store with the runs that chains ask for: each chain gets its records as soon as they are there.

A chain is a generator. It yields what it asks for, receives the records, and asks again, until it knows enough. Chains
run side by side, so that one which waits for a long run holds up no other.
"""

import logging
import math
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from icl_bench.harness.engines.base import Agenda, Engine, seconds_of
from icl_bench.runs.events import Reporter
from icl_bench.runs.record import RunRecord
from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store import Store

if TYPE_CHECKING:
    from icl_bench.harness.training.trainer import Machine

LOG = logging.getLogger("icl_bench")
LONG = 600.0
"""Seconds of all runs on a GPU, by the rule of thumb, from which runs of lower rank go first.

Below, all of them end sooner where what takes longest begins first, and nobody stops them after a part.
"""


class Ask(NamedTuple):
    """The runs whose records a chain waits for."""

    runs: Sequence[RunSpec]
    rank: int = 0
    """Place in the agenda: runs of lower rank go first, but where all work takes minutes on a GPU."""
    later: Sequence[RunSpec] = ()
    """Runs that this chain is known to ask for afterwards, at a rate that may still change."""
    whole: bool = False
    """Train these runs in the fleets that they are packed into, none of which is cut."""

    @property
    def seconds_later(self) -> float:
        """Estimated seconds of the later runs."""
        return seconds_of_kinds(self.later)


Chain = Generator[Ask, list[RunRecord], None]
"""A sequence of asks, each of which may follow from the records of those before it."""


@dataclass(frozen=True)
class Executor:
    """A store, an engine that fills it, and a reporter that receives the progress."""

    store: Store
    engine: Engine
    fleet_size: int
    """Number of runs trained together."""
    reporter: Reporter
    machine: "Machine | None" = None
    """Machine whose memory the runs must fit; None where they run elsewhere."""
    again: bool = False
    """Repeat finished runs that ended in an error, once."""
    seen: set[str] = field(default_factory=set)
    """Ids of the runs that were asked for, and names of the layers whose edit was told."""

    def finish(self, specs: Sequence[RunSpec]) -> list[RunRecord]:
        """Finish the runs that the store lacks; return all records, in order; raise StoreError if the store fails."""
        records: list[RunRecord] = []

        def only() -> Chain:
            records.extend((yield Ask(specs)))

        self.follow([only()])
        return records

    def follow(self, chains: Sequence[Chain]) -> None:
        """Give all chains the records that they ask for, until each has ended; raise StoreError if the store fails."""
        self.store.check_writable()
        try:
            Pursuit(self).follow(chains)
            self.store.clear_up()  # a lost worker leaves the checkpoints of a fleet whose members then run alone
        finally:
            self.reporter.closed()

    def lacking(self, specs: Sequence[RunSpec]) -> list[RunSpec]:
        """Return the runs that the store lacks; first set failed ones aside, if these are to be repeated."""
        from icl_bench.harness.finished import edited_parts, set_failed_aside

        if self.again:
            set_failed_aside(self.store, [spec for spec in specs if spec.id not in self.seen])
        missing = list({spec.id: spec for spec in specs if not self.store.has(spec.id)}.values())
        for name, count in edited_parts(self.store, missing).items():
            if name not in self.seen:
                LOG.warning("%s has another source than in %d finished runs here: these are new runs", name, count)
            self.seen.add(name)
        self.seen.update(spec.id for spec in specs)
        return missing


class Pursuit:
    """Chains on their way: what each waits for, and the agenda of fleets from which its records will come."""

    def __init__(self, executor: Executor) -> None:
        self.executor, self.agenda = executor, Agenda()
        self.waiting: dict[Chain, Ask] = {}
        self.lacking: dict[Chain, set[str]] = {}
        self.wanted: dict[str, list[Chain]] = {}
        self.later: dict[Chain, float] = {}  # estimated seconds of what it asks for afterwards
        self.in_turn: bool | None = None  # whether ranks count; known with the first plan

    def follow(self, chains: Iterable[Chain]) -> None:
        """Run the chains to their ends."""
        self.advance(chains)
        while self.waiting:
            for result in self.executor.engine.submit(self.agenda, self.executor.store, self.executor.reporter):
                self.advance(self.freed_by(result.id))
            if not self.agenda:  # whatever an engine did not yield is in the store, or is missed there
                self.advance(list(self.waiting))

    def freed_by(self, run: str) -> list[Chain]:
        """Note that a run is finished; return the chains that waited for nothing else."""
        chains = self.wanted.pop(run, [])
        for chain in chains:
            self.lacking[chain].discard(run)
        return [chain for chain in chains if not self.lacking[chain]]

    def advance(self, chains: Iterable[Chain]) -> None:
        """Let each chain go on until it asks for runs that are missing; plan these."""
        asked: list[RunSpec] = []
        missing: list[tuple[Chain, RunSpec]] = []
        for chain in chains:
            while ask := self.next_ask(chain):
                asked += ask.runs
                if lacking := self.executor.lacking(ask.runs):
                    missing += [(chain, spec) for spec in lacking if spec.id not in self.wanted]
                    self.wait_for(chain, lacking)
                    break
        whole = any(ask.whole for ask in self.waiting.values())
        self.agenda.seconds_later = math.inf if whole else sum(self.later.values())
        if asked:
            self.plan(asked, missing)

    def wait_for(self, chain: Chain, lacking: Sequence[RunSpec]) -> None:
        """Note the runs that a chain waits for."""
        self.lacking[chain] = {spec.id for spec in lacking}
        self.later[chain] = self.waiting[chain].seconds_later
        for spec in lacking:
            self.wanted.setdefault(spec.id, []).append(chain)

    def next_ask(self, chain: Chain) -> Ask | None:
        """Send a chain the records that it waits for, if any; return what it asks for next, None at its end."""
        ask = self.waiting.pop(chain, None)
        self.later.pop(chain, None)
        try:
            load = self.executor.store.load
            self.waiting[chain] = chain.send([load(spec.id) for spec in ask.runs]) if ask else next(chain)
        except StopIteration:
            return None
        return self.waiting[chain]

    def plan(self, asked: Sequence[RunSpec], missing: Sequence[tuple[Chain, RunSpec]]) -> None:
        """Put missing runs, given with who asks for them, on the agenda, those of a rank in common fleets."""
        from icl_bench.harness.training.fleet import pack
        from icl_bench.harness.training.memory import check_memory

        specs = [spec for _, spec in missing]
        if self.executor.machine is not None:
            check_memory(specs, self.executor.machine)
        self.executor.reporter.expected([spec for ask in self.waiting.values() for spec in ask.later])
        self.executor.reporter.planned(asked, specs)
        after = {spec.id: self.later[chain] for chain, spec in missing}
        if self.in_turn is None:
            self.in_turn = self.ranks_count(specs)
        by_rank: dict[int, list[RunSpec]] = {}
        for chain, spec in missing:
            by_rank.setdefault(self.waiting[chain].rank if self.in_turn else 0, []).append(spec)
        for rank, members in by_rank.items():
            for fleet in pack(members, self.executor.fleet_size):
                self.agenda.add([fleet], rank, max(after[spec.id] for spec in fleet))

    def ranks_count(self, specs: Sequence[RunSpec]) -> bool:
        """Return whether runs of lower rank go first: always, but for short work on GPUs of this machine."""
        machine = self.executor.machine
        if machine is None or machine.device.type != "cuda":
            return True
        return seconds_of_kinds(specs) + self.agenda.seconds_later > LONG


def seconds_of_kinds(specs: Iterable[RunSpec]) -> float:
    """Estimate the seconds of runs on a GPU by the rule, once for neighbours that train in common fleets."""
    return sum(seconds_of(list(runs)) for _, runs in groupby(specs, key=lambda spec: spec.fleet_key()))
