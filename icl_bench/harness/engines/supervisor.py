"""Give fleets to workers, replace lost workers, and give up the fleets that end too many of them.

A supervisor knows neither processes nor networks: a pool starts the workers and passes on their messages. Workers share
nothing, each has at most one fleet, and every wait here has a limit.
"""

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from icl_bench.errors import EngineError
from icl_bench.harness import interruption
from icl_bench.harness.engines import messages
from icl_bench.harness.engines.base import Agenda
from icl_bench.harness.engines.places import WorkerSlot, seat_for
from icl_bench.harness.engines.queues import FleetQueue, Item
from icl_bench.harness.environment import make_manifest
from icl_bench.harness.training.results import failed_result
from icl_bench.harness.training.trainer import Machine
from icl_bench.runs.events import Reporter
from icl_bench.runs.record import RunResult, Status
from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store import Store
from icl_bench.runs.store.attempt import finish_moves

TICK = 0.5
"""Seconds to wait for messages before the time limits are checked."""
MOST_LOSSES = 3
"""Workers that a fleet may lose before it is given up, if the fleets themselves end workers."""
MOST_UNDESERVED_LOSSES = 10
"""The same limit if something else ends workers: if three fleets that lost workers have ended well all the same."""
MOST_FAILED_STARTS = 10
"""Workers in a row that may end before they are ready."""


@dataclass
class Usage:
    """The use of the workers' time, in seconds summed over workers."""

    start: float = 0.0
    """Seconds from the first submission to the first worker ready; not a sum."""
    present: float = 0.0
    """Time in which workers were ready, with or without a fleet, while fleets were left."""
    busy: float = 0.0
    """Time in fleets that ended, measured by the workers."""
    trips: float = 0.0
    """Time from the assignment of a fleet to the message that it ended."""
    fleets: int = 0
    """Number of fleets that ended."""
    lost: int = 0
    """Number of workers that ended although nobody asked them to."""

    @property
    def overhead(self) -> float:
        """Mean seconds between assignment and end of a fleet beyond its own time; 0 before a fleet has ended."""
        return (self.trips - self.busy) / self.fleets if self.fleets else 0.0


@dataclass
class Supervisor:
    """An engine: up to `size` workers, kept from one submission to the next."""

    pool: messages.WorkerPool
    size: int
    machine: Machine
    limits: messages.Limits
    usage: Usage = field(default_factory=Usage)
    slots: list[WorkerSlot] = field(default_factory=list)

    def submit(self, agenda: Agenda, store: Store, reporter: Reporter) -> Iterator[RunResult]:
        """Run the fleets on the workers and yield their results."""
        return self.run_queue(FleetQueue(agenda), store, reporter)

    def run_queue(self, queue: FleetQueue, store: Store, reporter: Reporter) -> Iterator[RunResult]:
        """Run the fleets of a queue and yield their results; afterwards no worker has a fleet, even after an error."""
        submission = Submission(self, queue, store, reporter)
        with interruption.deferred():
            try:
                yield from submission.run()
            except BaseException:
                submission.stop_workers()
                raise
            finally:
                queue.close()

    def close(self) -> None:
        """End the workers and close the pool."""
        self.pool.kill_all([slot.worker for slot in self.slots])
        self.slots.clear()
        self.pool.close()


class Submission:
    """The work on one queue, from the first fleet assigned to the last result."""

    def __init__(self, supervisor: Supervisor, queue: FleetQueue, store: Store, reporter: Reporter) -> None:
        self.pool, self.size, self.machine = supervisor.pool, supervisor.size, supervisor.machine
        self.limits, self.usage, self.slots = supervisor.limits, supervisor.usage, supervisor.slots
        self.queue, self.store, self.reporter = queue, store, reporter
        self.clock = 0.0  # seconds, without the time in which this process was stopped or asleep
        self.began = self.last_tick = time.monotonic()
        self.last_ready = 0.0
        self.survivors = 0  # fleets that lost workers and ended well
        self.failed_starts = 0
        self.held: Item | None = None  # a fleet that waits for room

    def run(self) -> Iterator[RunResult]:
        """Start workers, assign fleets, receive messages and check time limits, until no fleet is left."""
        for slot in self.slots:
            slot.last_heard = 0.0
        while self.queue.left():
            interruption.raise_if_interrupted()
            yield from self.fill_slots()
            yield from self.receive()
            self.advance_clock()
            yield from self.enforce_limits()
            self.queue.keep()

    def fill_slots(self) -> Iterator[RunResult]:
        """Start a worker for each fleet that is left, up to the size of the pool, and give each idle worker a fleet."""
        while len(self.slots) < min(self.size, self.queue.left()):
            self.slots.append(WorkerSlot(self.pool.start(), self.clock))
        while any(slot.ready and slot.item is None for slot in self.slots):
            item, self.held = self.held or self.queue.take(), None
            if item is None:
                return
            to_come = self.queue.seconds_to_come
            seat = seat_for(item.specs, self.slots, self.pool, self.machine.device, to_come)
            if seat is None:
                self.held = item
                return
            if seat.members < len(item.specs):
                self.queue.settle(item, item.cut(seat.members))
                continue
            yield from self.assign(seat.slot, item)

    def assign(self, slot: WorkerSlot, item: Item) -> Iterator[RunResult]:
        """Give a worker a fleet, or give the fleet up if it has lost too many workers in other processes."""
        self.reporter.started(item.specs)
        slot.assigned_at = self.clock
        if item.losses >= self.most_losses():
            self.queue.settle(item)
            yield from self.give_up(item.specs, "crashed", f"lost {item.losses} workers, here or elsewhere", slot)
            return
        slot.take(item, self.clock)
        slot.worker.assign(messages.Order(item.specs, self.store.root.resolve()))

    def receive(self) -> Iterator[RunResult]:
        """Receive messages and act on each."""
        slots = {slot.worker: slot for slot in self.slots}
        for worker, message in self.pool.listen(list(slots), TICK):
            self.advance_clock()
            slots[worker].last_heard = self.clock
            yield from self.handle(slots[worker], message)

    def handle(self, slot: WorkerSlot, message: messages.Message) -> Iterator[RunResult]:
        """Act on a message."""
        match message:
            case messages.Heartbeat(outside=seconds):
                if seconds > self.limits.outside:
                    yield from self.end_for_good(slot, f"a call of code from outside took {seconds:.0f} s")
            case messages.Ready():
                slot.ready = True
                self.failed_starts = 0
                self.usage.start = self.usage.start or time.monotonic() - self.began
            case messages.ProgressReport(progress):
                if slot.item:
                    slot.trained = progress.step / progress.steps
                    self.reporter.progressed(slot.item.specs, progress)
            case messages.Finished():
                yield from self.finish(slot, message)
            case messages.FleetError(error):
                raise error
            case messages.WorkerLost(reason):
                yield from self.replace(slot, "crashed", reason)

    def finish(self, slot: WorkerSlot, done: messages.Finished) -> Iterator[RunResult]:
        """Take the results of a fleet, and end the worker if it cannot be used again."""
        self.usage.fleets += 1
        self.usage.busy += done.seconds
        self.usage.trips += self.clock - slot.assigned_at
        if slot.item:
            self.survivors += slot.item.losses > 0
            self.queue.settle(slot.item)
        slot.item = None
        if done.unusable:
            self.stop(slot)
        self.reporter.finished(done.results)
        yield from done.results

    def replace(self, slot: WorkerSlot, status: Status, reason: str) -> Iterator[RunResult]:
        """Remove a lost worker; queue its fleet again or give it up; raise EngineError after too many failed starts."""
        self.stop(slot)
        self.usage.lost += 1
        self.failed_starts += not slot.ready
        if not slot.ready and self.failed_starts >= MOST_FAILED_STARTS:
            raise EngineError(
                f"workers must start; {self.failed_starts} in a row did not, the last: {reason}; see what they wrote "
                "above, or use --engine inline"
            )
        if slot.item is None:
            return
        rest = yield from self.salvage(slot.item, reason)
        losses, limit = slot.item.losses + 1, self.most_losses()
        self.queue.settle(slot.item, slot.item.after_loss(rest, limit) if rest and losses < limit else ())
        if losses >= limit:
            yield from self.give_up(rest, status, f"lost {losses} workers, the last: {reason}", slot)

    def most_losses(self) -> int:
        """Return the number of workers that a fleet may lose: more if it seems that something else ends workers."""
        return MOST_UNDESERVED_LOSSES if self.survivors >= MOST_LOSSES else MOST_LOSSES

    def salvage(self, item: Item, reason: str) -> Generator[RunResult, None, list[RunSpec]]:
        """Yield the committed results of a lost fleet; return the runs that have none."""
        self.reporter.lost(item.specs, reason)
        finish_moves(self.store.root)
        rest = [spec for spec in item.specs if not self.store.has(spec.id)]
        yield from self.report([self.store.load(spec.id).result for spec in item.specs if spec not in rest])
        return rest

    def give_up(self, specs: Sequence[RunSpec], status: Status, detail: str, slot: WorkerSlot) -> Iterator[RunResult]:
        """Commit for each run the result that it could not be carried out."""
        device = self.machine.device
        is_here = device.type == "cpu" or torch.cuda.is_available()
        manifest = make_manifest(device if is_here else torch.device("cpu"), self.machine.impl, len(specs))
        if not is_here:
            manifest = manifest.model_copy(update={"device": "a GPU elsewhere"})
        seconds = self.clock - slot.assigned_at
        failed = [(spec, failed_result(spec, status, detail, seconds)) for spec in specs]
        yield from self.report([self.store.begin(spec, manifest).commit(result) for spec, result in failed])

    def report(self, results: Sequence[RunResult]) -> Iterator[RunResult]:
        """Report results and yield them."""
        if results:
            self.reporter.finished(results)
        yield from results

    def advance_clock(self) -> None:
        """Advance the clock by at most two ticks, so that time in which this process is asleep does not count."""
        now = time.monotonic()
        step, self.last_tick = min(now - self.last_tick, 2 * TICK), now
        self.clock += step
        self.usage.present += step * sum(slot.ready for slot in self.slots)

    def enforce_limits(self) -> Iterator[RunResult]:
        """End workers whose fleet takes too long or that are silent; raises EngineError if none is ready in time."""
        if any(slot.ready for slot in self.slots):
            self.last_ready = self.clock
        elif self.clock - self.last_ready > self.limits.start:
            raise EngineError(
                f"a worker must be ready within {self.limits.start:.0f} s; none was; ask for fewer workers, or look "
                "for what delays them"
            )
        for slot in [slot for slot in self.slots if slot.ready]:
            if slot.item and self.limits.fleet is not None and self.clock - slot.assigned_at > self.limits.fleet:
                yield from self.end_for_good(slot, f"not done after {self.limits.fleet:g} s, the timeout of the engine")
            elif self.clock - slot.last_heard > self.limits.silence:
                yield from self.replace(slot, "timeout", f"no sign of life for {self.limits.silence:g} s")

    def end_for_good(self, slot: WorkerSlot, detail: str) -> Iterator[RunResult]:
        """End a worker and record its fleet as `timeout`, since a second try would take as long."""
        self.stop(slot)
        if slot.item:
            rest = yield from self.salvage(slot.item, detail)
            self.queue.settle(slot.item)
            yield from self.give_up(rest, "timeout", detail, slot)

    def stop(self, slot: WorkerSlot) -> None:
        """End a worker and remove its slot."""
        self.slots.remove(slot)
        slot.worker.kill()

    def stop_workers(self) -> None:
        """Let workers finish their step and save within the grace time; then end all of them."""
        busy = {slot.worker: slot for slot in self.slots if slot.item}
        for worker in busy:
            worker.ask_to_end()
        end = time.monotonic() + self.limits.grace
        while busy and time.monotonic() < end:
            for worker, message in self.pool.listen(list(busy), TICK):
                if isinstance(message, messages.Finished):
                    self.reporter.finished(message.results)
                if isinstance(message, messages.Finished | messages.FleetError | messages.WorkerLost):
                    busy.pop(worker, None)  # one that finished may be lost in the same moment
        for item in [self.held, *(slot.item for slot in self.slots)]:
            if item:
                self.queue.settle(item, [item])
        self.pool.kill_all([slot.worker for slot in self.slots])
        self.slots.clear()
