"""A supervisor: gives fleets to workers, replaces those that are lost, and gives up what ends too many of them.

It knows nothing of processes or networks: a crew hires workers and hears what they say. Nothing is shared between
workers, each has at most one fleet in hand, and nothing here waits without a limit.
"""

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch

from icl_bench.errors import EngineError
from icl_bench.harness import interruption
from icl_bench.harness.engines.messages import Beat, Finished, Gone, Message, Order, Raised, Ready, Told
from icl_bench.harness.engines.queue import Item, Queue
from icl_bench.harness.engines.worker import GRACE
from icl_bench.harness.environment import make_manifest
from icl_bench.harness.training.fleet import Machine, failed
from icl_bench.runs.events import Reporter
from icl_bench.runs.record import Manifest, RunResult, Status
from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store import Store
from icl_bench.runs.store.attempt import finish_moves

TICK = 0.5
"""Seconds for which nothing may be heard before time limits are looked at."""
MOST_LOSSES = 3
"""Workers that a fleet may cost before it is given up, where it is the fleets that end workers."""
MOST_UNDESERVED_LOSSES = 10
"""The same where it is not: where at least three fleets that had cost workers ended well all the same."""
MOST_FAILED_STARTS = 10
"""Workers in a row that may end before they are ready."""


class Worker(Protocol):
    """A worker as its supervisor sees it."""

    def give(self, order: Order) -> None:
        """Give it a fleet; it must have none."""

    def ask_to_end(self) -> None:
        """Ask it to finish its step, save and end."""

    def kill(self) -> None:
        """End it at once, and clear away what is left of it."""


class Crew(Protocol):
    """How workers are had."""

    def hire(self) -> Worker:
        """Start a worker; it says when it is ready."""

    def listen(self, workers: Sequence[Worker], seconds: float) -> Iterator[tuple[Worker, Message]]:
        """What the workers say, waiting at most so long for the first word; `Gone` is the last word of a worker."""


class Limits(NamedTuple):
    """Seconds that a supervisor waits."""

    fleet: float | None = None
    """For a fleet to end; none for ever."""
    silence: float = 60.0
    """For a sign of life."""
    start: float = 600.0
    """For the first worker to be ready."""
    grace: float = GRACE
    """For workers to finish their step and save, when all is to stop."""


DEFAULT_LIMITS = Limits()


@dataclass
class Usage:
    """Where the time of the workers went, in seconds summed over workers."""

    start: float = 0.0
    """From the first submission to the first worker ready; not summed."""
    present: float = 0.0
    """Ready, with or without a fleet, while there was something to do."""
    busy: float = 0.0
    """In fleets that ended, as the workers saw it."""
    trips: float = 0.0
    """From handing a fleet over to hearing of its end."""
    fleets: int = 0
    """Fleets that ended."""
    lost: int = 0
    """Workers that ended without being asked to."""

    @property
    def overhead(self) -> float:
        """Seconds that a fleet spends on its way, from hand to hand, beyond its own time; 0 before one has ended."""
        return (self.trips - self.busy) / self.fleets if self.fleets else 0.0


@dataclass(eq=False)
class Post:
    """A worker and what it has in hand."""

    worker: Worker
    heard: float
    ready: bool = False
    item: Item | None = None
    since: float = 0.0


@dataclass
class Supervisor:
    """Workers of one engine, kept from one submission to the next."""

    crew: Crew
    size: int
    machine: Machine
    limits: Limits
    usage: Usage = field(default_factory=Usage)
    posts: list[Post] = field(default_factory=list)

    def carry_out(self, queue: Queue, store: Store, reporter: Reporter) -> Iterator[RunResult]:
        """Work until the queue is finished; however it ends, no worker is left with a fleet in hand."""
        shift = Shift(self, queue, store, reporter)
        with interruption.deferred():
            try:
                yield from shift.work()
            except BaseException:
                shift.break_off()
                raise
            finally:
                queue.close()

    def close(self) -> None:
        """Let the workers go."""
        for post in self.posts:
            post.worker.kill()
        self.posts.clear()


class Shift:
    """One submission: from the first fleet handed out to the last result."""

    def __init__(self, supervisor: Supervisor, queue: Queue, store: Store, reporter: Reporter) -> None:
        self.crew, self.size, self.machine = supervisor.crew, supervisor.size, supervisor.machine
        self.limits, self.usage, self.posts = supervisor.limits, supervisor.usage, supervisor.posts
        self.queue, self.store, self.reporter = queue, store, reporter
        self.clock = 0.0
        self.began = self.last = time.monotonic()
        self.staffed = 0.0
        self.survivors = 0
        self.failed_starts = 0

    def work(self) -> Iterator[RunResult]:
        """Hire, hand out, hear, look at the clock; until nothing is left."""
        for post in self.posts:
            post.heard = 0.0
        while self.queue.left():
            interruption.check()
            yield from self.staff()
            yield from self.hear()
            self.pass_time()
            yield from self.enforce_limits()
            self.queue.keep()

    def staff(self) -> Iterator[RunResult]:
        """Hire as many workers as there is work and room for, and give each idle one a fleet."""
        while len(self.posts) < min(self.size, self.queue.left()):
            self.posts.append(Post(self.crew.hire(), self.clock))
        for post in self.posts:
            if post.ready and post.item is None:
                item = self.queue.take()
                if item is None:
                    return
                yield from self.hand_out(post, item)

    def hand_out(self, post: Post, item: Item) -> Iterator[RunResult]:
        """Give a worker a fleet, unless that has cost too many workers elsewhere."""
        self.reporter.started(item.specs)
        post.since = self.clock
        if item.losses >= self.most_losses():
            self.queue.settle(item)
            yield from self.give_up(item.specs, "crashed", f"lost {item.losses} workers, here or elsewhere", post)
            return
        post.item = item
        post.worker.give(Order(item.specs, self.store.root.resolve()))

    def hear(self) -> Iterator[RunResult]:
        """Hear what the workers say."""
        posts = {post.worker: post for post in self.posts}
        for worker, message in self.crew.listen(list(posts), TICK):
            self.pass_time()
            posts[worker].heard = self.clock
            yield from self.answer(posts[worker], message)

    def answer(self, post: Post, message: Message) -> Iterator[RunResult]:
        """Do what a message asks for."""
        match message:
            case Beat():
                pass
            case Ready():
                self.welcome(post)
            case Told(progress):
                if post.item:
                    self.reporter.progressed(post.item.specs, progress)
            case Finished():
                yield from self.finish(post, message)
            case Raised(error):
                raise error
            case Gone(reason):
                yield from self.lose(post, "crashed", reason)

    def welcome(self, post: Post) -> None:
        """Note that a worker is ready."""
        post.ready = True
        self.failed_starts = 0
        self.usage.start = self.usage.start or time.monotonic() - self.began

    def finish(self, post: Post, done: Finished) -> Iterator[RunResult]:
        """Take the results of a fleet."""
        self.usage.fleets += 1
        self.usage.busy += done.seconds
        self.usage.trips += self.clock - post.since
        if post.item:
            self.survivors += post.item.losses > 0
            self.queue.settle(post.item)
        post.item = None
        if done.spoiled:
            self.dismiss(post)
        self.reporter.finished(done.results)
        yield from done.results

    def lose(self, post: Post, status: Status, reason: str) -> Iterator[RunResult]:
        """Let a worker go that ended or fell silent; its fleet is done again, unless it cost too many workers."""
        self.dismiss(post)
        self.usage.lost += 1
        if not post.ready:
            self.count_failed_start(reason)
        if post.item is None:
            return
        rest = yield from self.salvage(post.item, reason)
        losses, limit = post.item.losses + 1, self.most_losses()
        self.queue.settle(post.item, post.item.after_loss(rest, limit) if rest and losses < limit else ())
        if losses >= limit:
            yield from self.give_up(rest, status, f"lost {losses} workers, the last: {reason}", post)

    def most_losses(self) -> int:
        """Workers that a fleet may cost: more where it seems that someone else ends them."""
        return MOST_UNDESERVED_LOSSES if self.survivors >= MOST_LOSSES else MOST_LOSSES

    def count_failed_start(self, reason: str) -> None:
        """Note that a worker ended before it was ready; raises EngineError where no other has been ready for long."""
        self.failed_starts += 1
        if self.failed_starts >= MOST_FAILED_STARTS:
            raise EngineError(
                f"workers must start; {self.failed_starts} in a row did not, the last: {reason}; see what they wrote "
                "above, or use --engine inline"
            )

    def salvage(self, item: Item, reason: str) -> Generator[RunResult, None, list[RunSpec]]:
        """Take the runs of a lost fleet that are committed; returns the others."""
        self.reporter.lost(item.specs, reason)
        finish_moves(self.store.root)
        rest = [spec for spec in item.specs if not self.store.has(spec.id)]
        yield from self.tell([self.store.load(spec.id).result for spec in item.specs if spec not in rest])
        return rest

    def give_up(self, specs: Sequence[RunSpec], status: Status, detail: str, post: Post) -> Iterator[RunResult]:
        """Record for each run that it cannot be carried out here."""
        results = []
        for spec in specs:
            result = failed(spec, status, detail, time.perf_counter() - (self.clock - post.since))
            results.append(self.store.begin(spec, self.manifest(len(specs))).commit(result))
        yield from self.tell(results)

    def manifest(self, members: int) -> Manifest:
        """The manifest of runs that are given up; the GPU may be one that this machine lacks."""
        device, impl = self.machine.device, self.machine.impl
        if device.type == "cpu" or torch.cuda.is_available():
            return make_manifest(device, impl, members)
        return make_manifest(torch.device("cpu"), impl, members).model_copy(update={"device": "a GPU elsewhere"})

    def tell(self, results: Sequence[RunResult]) -> Iterator[RunResult]:
        """Report results and pass them on."""
        if results:
            self.reporter.finished(results)
        yield from results

    def pass_time(self) -> None:
        """Move the clock, which stands still while this process is stopped or asleep."""
        now = time.monotonic()
        step, self.last = min(now - self.last, 2 * TICK), now
        self.clock += step
        self.usage.present += step * sum(post.ready for post in self.posts)

    def enforce_limits(self) -> Iterator[RunResult]:
        """End workers that take too long or say nothing."""
        if any(post.ready for post in self.posts):
            self.staffed = self.clock
        elif self.clock - self.staffed > self.limits.start:
            raise EngineError(
                f"a worker must be ready within {self.limits.start:.0f} s; none was; ask for fewer --workers, or look "
                "at what keeps them waiting"
            )
        for post in [post for post in self.posts if post.ready]:
            if post.item and self.limits.fleet is not None and self.clock - post.since > self.limits.fleet:
                yield from self.time_out(post, post.item, self.limits.fleet)
            elif self.clock - post.heard > self.limits.silence:
                yield from self.lose(post, "timeout", f"no sign of life for {self.limits.silence:g} s")

    def time_out(self, post: Post, item: Item, limit: float) -> Iterator[RunResult]:
        """End a worker whose fleet takes too long; the fleet would take as long again, so that this is its result."""
        self.dismiss(post)
        rest = yield from self.salvage(item, f"ended after {limit:g} s")
        self.queue.settle(item)
        yield from self.give_up(rest, "timeout", f"not done after {limit:g} s, the limit of --timeout", post)

    def dismiss(self, post: Post) -> None:
        """End a worker."""
        self.posts.remove(post)
        post.worker.kill()

    def break_off(self) -> None:
        """Let workers finish their step and save, for as long as the limit allows; then let all of them go."""
        busy = {post.worker: post for post in self.posts if post.item}
        for worker in busy:
            worker.ask_to_end()
        end = time.monotonic() + self.limits.grace
        while busy and time.monotonic() < end:
            for worker, message in self.crew.listen(list(busy), TICK):
                if isinstance(message, Finished):
                    self.reporter.finished(message.results)
                if isinstance(message, Finished | Raised | Gone):
                    busy.pop(worker)
        for post in self.posts:
            if post.item:
                self.queue.settle(post.item, [post.item])
            post.worker.kill()
        self.posts.clear()
