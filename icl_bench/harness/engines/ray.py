"""Ray actors as workers, on one machine or many: for private networks only, since Ray asks nobody who they are.

Actors live as long as the engine and are given one fleet at a time: a Ray task that asks for a GPU would get a fresh
process, and load torch and CUDA anew, for each fleet. Ray itself retries nothing here; the supervisor does, by the same
rule as for local processes.
"""

import importlib.util
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from icl_bench.errors import EngineError
from icl_bench.harness import interruption
from icl_bench.harness.engines.messages import Beat, Finished, Gone, Message, Order, Raised, Ready, Told
from icl_bench.harness.engines.queue import FleetQueue
from icl_bench.harness.engines.supervisor import DEFAULT_LIMITS, Limits, Supervisor, Worker
from icl_bench.harness.engines.worker import BEAT_EVERY, Setup, carry_out, prepare
from icl_bench.harness.training.fleet import Machine
from icl_bench.runs.events import Progress, Reporter
from icl_bench.runs.record import RunResult
from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store import Store

CALLS_AT_ONCE = 3
"""A fleet, a question how far it is, and a request to end."""
REACHED_WITHIN = 10.0
"""Seconds for a cluster to take a connection."""
PASSED_ON = "ICL_BENCH_"
"""Environment variables of this prefix go with the actors."""


class RayEngine:
    """Long-lived Ray actors. The store must lie where all machines see it under the same path.

    Args:
        machine: Where and how fleets run.
        workers: Number of actors; by default one a core of the cluster, or one a GPU.
        limits: Time limits.
        address: A cluster, as `ray.init` takes it; none to start Ray on this machine.

    Raises:
        EngineError: where Ray is not installed, or its cluster lacks what is asked for.
    """

    def __init__(
        self,
        machine: Machine,
        workers: int | None = None,
        limits: Limits = DEFAULT_LIMITS,
        address: str | None = None,
    ) -> None:
        if importlib.util.find_spec("ray") is None:
            raise EngineError("--engine ray needs Ray; it is not installed; pip install 'icl-bench[ray]'")
        self.owner = connect(address)
        on_gpu = machine.device.type == "cuda"
        there = available("GPU" if on_gpu else "CPU")
        size = workers or there
        self.supervisor = Supervisor(RayCrew(machine, gpu_share(there, size) if on_gpu else 0.0), size, machine, limits)

    def submit(self, fleets: Sequence[Sequence[RunSpec]], store: Store, reporter: Reporter) -> Iterator[RunResult]:
        """Run the fleets on the actors."""
        yield from self.supervisor.carry_out(FleetQueue(fleets), store, reporter)

    def close(self) -> None:
        """End the actors, and Ray where this engine started it."""
        import ray

        self.supervisor.close()
        if self.owner:
            ray.shutdown()


def connect(address: str | None) -> bool:
    """Start Ray, or join a cluster; whether it was not there before. Raises EngineError."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anyone
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        return False
    if address:
        check_reachable(address)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, include_dashboard=None if address else False, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise unreachable(address, error) from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # Ray puts its own in place, which would save nothing
    return True


def check_reachable(address: str) -> None:
    """Refuse an address where nobody listens, for which Ray itself would wait for minutes; raises EngineError."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:
        return  # a word such as `auto`: Ray looks for a cluster on this machine
    try:
        socket.create_connection((host, int(port)), REACHED_WITHIN).close()
    except (OSError, ValueError, OverflowError) as error:
        raise unreachable(address, error) from None


def unreachable(address: str | None, error: Exception) -> EngineError:
    """What is said of a cluster that does not answer."""
    return EngineError(f"--ray-address names a Ray cluster that can be reached; {address}: {error}; check it")


def available(resource: str) -> int:
    """How many of a resource the cluster has; raises EngineError where it has none."""
    import ray

    found = int(ray.cluster_resources().get(resource, 0))
    if not found:
        raise EngineError(f"the Ray cluster must have a {resource}; it has none; choose another --device")
    return found


def gpu_share(gpus: int, workers: int) -> float:
    """The share of a GPU that each worker asks for, so that all of them fit.

    >>> [gpu_share(8, 8), gpu_share(1, 4), gpu_share(2, 3), gpu_share(4, 2)]
    [1.0, 0.25, 0.5, 1.0]
    """
    return math.floor(1e4 / math.ceil(workers / gpus)) / 1e4


class FleetActor:
    """What runs in a Ray actor."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.latest: Progress | None = None
        prepare(setup)

    def is_ready(self) -> Ready:
        """Answers once the actor has started."""
        return Ready()

    def carry_out(self, order: Order) -> Finished | Raised | Gone:
        """Run a fleet."""
        try:
            return carry_out(order, self.setup.machine, self)
        except interruption.Interrupted:
            return Gone("asked to end")

    def progressed(self, progress: Progress) -> None:
        """Keep how far the fleet is until someone asks."""
        self.latest = progress

    def how_far(self) -> Told | Beat:
        """How far the fleet is, once; then only that the actor is there."""
        latest, self.latest = self.latest, None
        return Told(latest) if latest else Beat()

    def end(self) -> None:
        """Have the fleet finish its step and save."""
        with suppress(interruption.Interrupted):
            interruption.CURRENT.receive(signal.SIGTERM, None)


class RayCrew:
    """Hires actors."""

    def __init__(self, machine: Machine, gpu_share: float) -> None:
        self.machine, self.gpu_share = machine, gpu_share

    def hire(self) -> "RayWorker":
        """Start an actor; Ray decides where."""
        passed = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
        return RayWorker(Setup(self.machine, 1, Path.cwd(), passed), self.gpu_share)

    def listen(self, workers: Sequence[Worker], seconds: float) -> Iterator[tuple[Worker, Message]]:
        """The first answer of an actor to what it was given or asked."""
        import ray

        asked = {ref: worker for worker in workers if isinstance(worker, RayWorker) for ref in worker.questions()}
        if not asked:
            time.sleep(seconds)
            return
        answered, _ = ray.wait(list(asked), num_returns=1, timeout=seconds)
        for ref in answered:
            yield asked[ref], asked[ref].answer(ref)


class RayWorker:
    """An actor, what it was given, and what it was last asked."""

    def __init__(self, setup: Setup, gpu_share: float) -> None:
        import ray

        kind: Any = ray.remote(FleetActor)
        self.actor = kind.options(num_cpus=1, num_gpus=gpu_share, max_concurrency=CALLS_AT_ONCE).remote(setup)
        self.task: Any = self.actor.is_ready.remote()
        self.question: Any = None
        self.asked = time.monotonic()

    def questions(self) -> list[Any]:
        """All that it has to answer; how far it is, it is asked every second."""
        if self.question is None and time.monotonic() - self.asked > BEAT_EVERY:
            self.question, self.asked = self.actor.how_far.remote(), time.monotonic()
        return [ref for ref in (self.task, self.question) if ref is not None]

    def answer(self, ref: Any) -> Message:
        """What it answered, or that it is gone."""
        import ray

        if ref is self.task:
            self.task = None
        else:
            self.question = None
        try:
            message: Message = ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            return Raised(EngineError(f"a Ray actor must understand what it is given; {error}; are versions equal?"))
        except ray.exceptions.RayError as error:
            return Gone(f"its Ray actor died: {str(error).strip().splitlines()[0]}")
        return message

    def give(self, order: Order) -> None:
        """Call it with a fleet."""
        self.task = self.actor.carry_out.remote(order)

    def ask_to_end(self) -> None:
        """Have it finish its step and save."""
        self.actor.end.remote()

    def kill(self) -> None:
        """End its process."""
        import ray

        ray.kill(self.actor)
