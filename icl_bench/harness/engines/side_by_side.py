"""Train several fleets at once in threads of one process, each on a CUDA stream of its own.

A fleet of a few members does not fill a GPU, and leaves it idle while it is built, captured and tested. One thread
takes a fleet from its first step to its commit; the graphs of different fleets replay beside each other, and what a
fleet does on the host happens while others train. Numbers do not depend on it: fleets share no tensor, and a stream
runs the work of its fleet in order.
"""

import queue
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Literal

from icl_bench.harness.engines.base import Agenda, Engine
from icl_bench.outside import StopRequest
from icl_bench.runs.events import Progress, Reporter
from icl_bench.runs.record import RunResult
from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store import Store

if TYPE_CHECKING:
    from icl_bench.harness.training.trainer import Machine

MOST_AT_ONCE = 8
"""Most fleets at once by default, those that are built or tested included."""
LEAST_GAIN = 1.03
"""Factor by which one more fleet in training must raise the sum of all speeds."""
TRUSTED = 3
"""Number of fleets at once that are taken to help before it is measured: on an H200, small ones gain 18 %."""
SWITCH_SECONDS = 1e-4
"""Seconds that a thread may compute in Python while another waits to launch a step; 5e-3 by default."""

SECONDS_TO_PREPARE = 1.0
"""Seconds before the end of a fleet's training at which its place is given to the next one, which is built meanwhile.

Fleets that start together end together, and would leave the GPU idle until others are built.
"""

Phase = Literal["preparing", "training", "ending"]
Event = Progress | list[RunResult] | BaseException
RunAlone = Callable[[Sequence[RunSpec], Store, Reporter], Iterator[RunResult]]


class LaneStopped(StopRequest):
    """Another fleet ended the command."""


class Lane:
    """A fleet on its way through one thread, and the speeds at which it trained."""

    def __init__(self, specs: Sequence[RunSpec], needed: float) -> None:
        self.specs, self.needed = specs, needed  # bytes of memory, estimated
        self.phase: Phase = "preparing"
        self.latest: tuple[int, Progress] | None = None  # and the number of changes before it
        self.speeds: dict[int, list[float]] = {}  # steps a second, by the number of fleets in training

    @property
    def stays(self) -> bool:
        """Return whether the fleet will train for longer than it takes to build the next one."""
        if self.phase != "training" or self.latest is None:
            return False
        now = self.latest[1]
        return now.seconds * (now.steps - now.step) > SECONDS_TO_PREPARE * now.step

    def note(self, progress: Progress, changes: int, training: int) -> None:
        """Add the speed since the last report, unless fleets came or went in between."""
        if self.latest is not None and self.latest[0] == changes and not progress.validations:
            before = self.latest[1]
            steps, seconds = progress.step - before.step, progress.seconds - before.seconds
            if steps > 0 and seconds > 0:
                self.speeds.setdefault(training, []).append(steps / seconds)
        self.latest = changes, progress


class Occupancy:
    """The number of fleets to train at once, by measured gains: one more is tried as long as the last one helped."""

    def __init__(self, most: int = MOST_AT_ONCE) -> None:
        self.most = most
        self.gains: dict[int, list[float]] = {}  # of n fleets over n - 1, by n, from the fleets that trained so

    def measure(self, lanes: Sequence[Lane]) -> None:
        """Add the gains that a fleet has seen, at its end.

        A fleet at speed v beside n - 2 others, and at w beside n - 1, stands for all of them: n w against (n - 1) v.
        """
        for lane in lanes:
            for n in set(lane.speeds) & {fewer + 1 for fewer in lane.speeds}:
                gain = n * median(lane.speeds[n]) / ((n - 1) * median(lane.speeds[n - 1]))
                self.gains.setdefault(n, []).append(gain)

    @property
    def wanted(self) -> int:
        """Number of fleets to train at once: the largest that helped, beside which one more is prepared and tried.

        It is at least two, so that one trains while another is built or tested, and three until their gain is known.
        """
        n = min(2, self.most)
        while n < self.most and self.helps(n + 1):
            n += 1
        return n

    def helps(self, n: int) -> bool:
        """Return whether n fleets train faster than n - 1, as far as is known."""
        return median(self.gains[n]) >= LEAST_GAIN if n in self.gains else n <= TRUSTED


class SideBySide(Engine):
    """A running engine for one device.

    Args:
        machine: The device of all fleets.
        run_alone: Runs a fleet in the calling thread while no other one runs; takes those with code from outside.
        most: Most fleets at once.
    """

    def __init__(self, machine: "Machine", run_alone: RunAlone, most: int = MOST_AT_ONCE) -> None:
        self.machine, self.run_alone = machine, run_alone
        self.occupancy = Occupancy(most)

    def submit(self, agenda: Agenda, store: Store, reporter: Reporter) -> Iterator[RunResult]:
        """Run the fleets and yield their results; after an error the other fleets stop at their next report."""
        from icl_bench.harness import interruption

        with interruption.deferred(), lane_threads(self.occupancy.most) as threads:
            lanes = Lanes(self, store, threads)
            try:
                while agenda or lanes.under_way or lanes.held:
                    interruption.raise_if_interrupted()
                    lanes.start_more(agenda, reporter)
                    if lanes.under_way:
                        yield from lanes.receive(reporter)
                    else:
                        yield from self.run_alone(lanes.take_held(), store, reporter)
            finally:
                lanes.stop()


class Lanes:
    """The fleets of one submission that are under way."""

    def __init__(self, engine: SideBySide, store: Store, threads: ThreadPoolExecutor) -> None:
        self.engine, self.store, self.threads = engine, store, threads
        self.under_way: list[Lane] = []
        self.held: Sequence[RunSpec] = ()  # a fleet that waits until it is alone
        self.events: queue.SimpleQueue[tuple[Lane, Event]] = queue.SimpleQueue()
        self.stopping = False
        self.changes = 0  # of the number of fleets in training
        self.budget = memory_budget(engine.machine)

    def count(self, phase: Phase) -> int:
        """Return the number of fleets in a phase."""
        return sum(lane.phase == phase for lane in self.under_way)

    def take_held(self) -> Sequence[RunSpec]:
        """Return the fleet that waited until it is alone."""
        fleet, self.held = self.held, ()
        return fleet

    def start_more(self, agenda: Agenda, reporter: Reporter) -> None:
        """Start fleets as long as there is room: one is prepared while the wanted number trains."""
        from icl_bench.harness.training.outside_layers import calls_outside_code

        while (self.held or agenda) and self.has_room():
            self.held = self.held or agenda.take()
            needed = memory_of(self.held)
            if calls_outside_code(self.held[0]) or (self.under_way and self.used() + needed > self.budget):
                return
            lane = Lane(self.take_held(), needed)
            reporter.started(lane.specs)
            self.threads.submit(self.carry_out, lane)
            self.under_way.append(lane)

    def has_room(self) -> bool:
        """Return whether another fleet may be started now, its memory aside."""
        occupancy, preparing = self.engine.occupancy, self.count("preparing")
        training = sum(lane.stays for lane in self.under_way)
        below = len(self.under_way) < occupancy.most and training <= occupancy.wanted
        return below and (not preparing or (preparing == 1 and not training))  # a long compilation holds up no other

    def used(self) -> float:
        """Return the estimated bytes of all fleets under way."""
        return sum(lane.needed for lane in self.under_way)

    def carry_out(self, lane: Lane) -> None:
        """Run a fleet in this thread; put its progress, and its results or its error, on the queue."""
        from icl_bench.harness.training.fleet import run_fleet

        try:
            use_own_stream(self.engine.machine)
            results = run_fleet(lane.specs, self.store, self.engine.machine, partial(self.tell, lane))
            self.events.put((lane, results))
        except BaseException as error:  # the main thread raises it
            self.events.put((lane, error))

    def tell(self, lane: Lane, progress: Progress) -> None:
        """Pass on the progress of a fleet, in its thread; raise LaneStopped if it is to end."""
        self.events.put((lane, progress))
        if self.stopping:
            raise LaneStopped

    def receive(self, reporter: Reporter) -> Iterator[RunResult]:
        """Wait for an event and act on it; raise the error of a fleet."""
        lane, event = self.events.get()
        if isinstance(event, Progress):
            self.follow(lane, event)
            reporter.progressed(lane.specs, event)
            return
        self.end(lane)
        if isinstance(event, BaseException):
            raise event
        reporter.finished(event)
        yield from event

    def follow(self, lane: Lane, progress: Progress) -> None:
        """Note the phase and the speed of a fleet."""
        phase: Phase = "training" if progress.step < progress.steps else "ending"
        if phase != lane.phase:
            lane.phase = phase
            self.changes += 1
            self.engine.occupancy.measure([lane] if phase == "ending" else [])
        if phase == "training":
            lane.note(progress, self.changes, self.count("training"))

    def end(self, lane: Lane) -> None:
        """Remove a fleet whose thread is done."""
        self.under_way.remove(lane)
        self.changes += lane.phase == "training"

    def stop(self) -> None:
        """Let all fleets stop at their next report, and wait for them; those that end all the same are committed."""
        self.stopping = True
        while self.under_way:
            lane, event = self.events.get()
            if not isinstance(event, Progress):
                self.end(lane)


def memory_of(fleet: Sequence[RunSpec]) -> float:
    """Return the estimated bytes of a fleet; 0 with code from outside, which runs alone."""
    from icl_bench.harness.training.memory import estimate_bytes

    return 0.0 if fleet[0].from_outside else estimate_bytes(fleet[0], len(fleet))


def memory_budget(machine: "Machine") -> float:
    """Return the estimated bytes that fleets beside each other may take on a device, at a time when none is there."""
    from icl_bench.harness.training.memory import TRUSTED_FRACTION, unused_memory

    return TRUSTED_FRACTION * unused_memory(machine.device)


@contextmanager
def lane_threads(most: int) -> Iterator[ThreadPoolExecutor]:
    """Make threads for fleets, and let all threads take turns quickly inside the block."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        with ThreadPoolExecutor(most, "fleet") as threads:
            yield threads
    finally:
        sys.setswitchinterval(before)


OF_THREAD = threading.local()
"""The stream of each thread."""


def use_own_stream(machine: "Machine") -> None:
    """Let this thread launch on a stream of its own, on a CUDA device; the same one in every call."""
    import torch

    from icl_bench.kernels.backends import prepare_in_turn

    if machine.device.type == "cuda" and not hasattr(OF_THREAD, "stream"):
        prepare_in_turn()
        OF_THREAD.stream = torch.cuda.Stream(machine.device)
        torch.cuda.set_stream(OF_THREAD.stream)
