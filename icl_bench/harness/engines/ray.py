"""Run fleets in Ray actors, on one machine or many: for private networks only, since Ray checks nobody's identity.

Actors live as long as the engine and receive one fleet at a time: a Ray task that asks for a GPU would get a new
process for each fleet, and load torch and CUDA each time. Ray itself retries nothing here; the supervisor does, by the
same rule as for local processes.
"""

import math
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from icl_bench.errors import EngineError
from icl_bench.harness import interruption
from icl_bench.harness.engines import messages
from icl_bench.harness.engines.base import ENGINES, Engine, EngineConfig
from icl_bench.runs.events import Progress

if TYPE_CHECKING:
    from icl_bench.harness.training.trainer import Machine

CALLS_AT_ONCE = 3
"""Calls that an actor serves at once: a fleet, a question about its progress, and a request to end."""
CONNECT_SECONDS = 10.0
"""Seconds for a cluster to accept a connection."""
ENVIRONMENT_PREFIX = "ICL_BENCH_"
"""Environment variables with this prefix are set in the actors too."""


@ENGINES.register("ray")
class Ray(EngineConfig):
    """Run fleets in Ray actors, on this machine or many; all of them see the store under the same path."""

    package: ClassVar[str | None] = "ray"
    elsewhere: ClassVar[bool] = True

    workers: int | None = Field(default=None, ge=1)
    """Number of actors; by default one for each core of the cluster, or one for each GPU."""
    timeout: float | None = Field(default=None, ge=0.1)
    """Seconds after which a fleet is ended and recorded as `timeout`; by default none."""
    address: str | None = None
    """Ray cluster: `auto`, or `"host:port"` in double quotes; by default Ray is started on this machine."""

    def start(self, machine: "Machine") -> Engine:
        """Join or start a cluster and return the running engine; raises EngineError if the cluster lacks something."""
        from icl_bench.harness.engines.supervisor import Supervisor

        is_owner = connect_to_cluster(self.address)
        import ray

        resource = "GPU" if machine.device.type == "cuda" else "CPU"
        found = int(ray.cluster_resources().get(resource, 0))
        if not found:
            raise EngineError(f"the Ray cluster must have a {resource}; it has none; choose another --device")
        size = self.workers or found
        pool = ActorPool(machine, gpu_share(found, size) if resource == "GPU" else 0.0, is_owner)
        return Supervisor(pool, size, machine, messages.Limits(fleet=self.timeout))


def connect_to_cluster(address: str | None) -> bool:
    """Connect to a Ray cluster, or start one; return True if no connection existed before. Raises EngineError."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage statistics leave the machine
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
        signal.signal(signal.SIGTERM, handler)  # Ray installs its own handler, which would save nothing
    return True


def check_reachable(address: str) -> None:
    """Refuse an address that accepts no connection, on which Ray would wait for minutes; raises EngineError."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:
        return  # a word such as `auto`: Ray looks for a cluster on this machine
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise unreachable(address, error) from None


def unreachable(address: str | None, error: Exception) -> EngineError:
    """Return the error about a cluster that does not answer."""
    return EngineError(f"--engine ray needs a Ray cluster that can be reached; {address}: {error}; check its address")


def gpu_share(gpus: int, workers: int) -> float:
    """Return the share of a GPU that each worker reserves, so that all workers fit.

    >>> [gpu_share(8, 8), gpu_share(1, 4), gpu_share(2, 3), gpu_share(4, 2)]
    [1.0, 0.25, 0.5, 1.0]
    """
    return math.floor(1e4 / math.ceil(workers / gpus)) / 1e4


class FleetActor:
    """The object that lives in a Ray actor and runs fleets."""

    def __init__(self, setup: messages.WorkerSetup) -> None:
        from icl_bench.harness.engines.worker import prepare

        self.setup = setup
        self.latest: Progress | None = None
        prepare(setup)

    def is_ready(self) -> messages.Ready:
        """Answer once the actor has started."""
        return messages.Ready()

    def execute_order(self, order: messages.Order) -> messages.Finished | messages.FleetError | messages.WorkerLost:
        """Run a fleet."""
        from icl_bench.harness.engines.worker import execute_order

        try:
            return execute_order(order, self.setup.machine, self.progressed)
        except interruption.Interrupted:
            return messages.WorkerLost("asked to end")

    def progressed(self, progress: Progress) -> None:
        """Keep the progress of the fleet until the pool asks for it."""
        self.latest = progress

    def latest_progress(self) -> messages.ProgressReport | messages.Heartbeat:
        """Return the progress since the last question, or a heartbeat if there is none."""
        latest, self.latest = self.latest, None
        return messages.ProgressReport(latest) if latest else messages.Heartbeat()

    def end(self) -> None:
        """Make the fleet finish its step and save."""
        with suppress(interruption.Interrupted):
            interruption.CURRENT.receive(signal.SIGTERM, None)


class ActorPool(messages.WorkerPool):
    """Start Ray actors; `is_owner` says that this process started Ray, so that closing the pool ends Ray too."""

    def __init__(self, machine: "Machine", gpu_share: float, is_owner: bool) -> None:
        self.machine, self.gpu_share, self.is_owner = machine, gpu_share, is_owner

    def start(self) -> "ActorWorker":
        """Start an actor; Ray decides on which machine."""
        passed = {name: value for name, value in os.environ.items() if name.startswith(ENVIRONMENT_PREFIX)}
        return ActorWorker(messages.WorkerSetup(self.machine, 1, Path.cwd(), passed), self.gpu_share)

    def listen(
        self, workers: Sequence[messages.Worker], seconds: float
    ) -> Iterator[tuple[messages.Worker, messages.Message]]:
        """Yield the first answer of an actor to a call that is not yet answered."""
        import ray

        calls = {ref: worker for worker in workers if isinstance(worker, ActorWorker) for ref in worker.open_calls()}
        if not calls:
            time.sleep(seconds)
            return
        answered, _ = ray.wait(list(calls), num_returns=1, timeout=seconds)
        for ref in answered:
            yield calls[ref], calls[ref].answer(ref)

    def close(self) -> None:
        """End Ray if this process started it."""
        import ray

        if self.is_owner:
            ray.shutdown()


class ActorWorker:
    """An actor, its current task, and the last question about its progress."""

    def __init__(self, setup: messages.WorkerSetup, gpu_share: float) -> None:
        import ray

        kind: Any = ray.remote(FleetActor)
        self.actor = kind.options(num_cpus=1, num_gpus=gpu_share, max_concurrency=CALLS_AT_ONCE).remote(setup)
        self.task: Any = self.actor.is_ready.remote()
        self.question: Any = None
        self.asked_at = time.monotonic()

    def open_calls(self) -> list[Any]:
        """Return the calls without an answer; ask for the progress once a second."""
        if self.question is None and time.monotonic() - self.asked_at > messages.HEARTBEAT_SECONDS:
            self.question, self.asked_at = self.actor.latest_progress.remote(), time.monotonic()
        return [ref for ref in (self.task, self.question) if ref is not None]

    def answer(self, ref: Any) -> messages.Message:
        """Return the answer to a call, or the message that the actor is lost."""
        import ray

        if ref is self.task:
            self.task = None
        else:
            self.question = None
        try:
            message: messages.Message = ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            text = f"a Ray actor must understand its calls; {error}; are all versions equal?"
            return messages.FleetError(EngineError(text))
        except ray.exceptions.RayError as error:
            return messages.WorkerLost(f"its Ray actor died: {str(error).strip().splitlines()[0]}")
        return message

    def assign(self, order: messages.Order) -> None:
        """Call the actor with a fleet."""
        self.task = self.actor.execute_order.remote(order)

    def ask_to_end(self) -> None:
        """Make the actor finish its step and save."""
        self.actor.end.remote()

    def kill(self) -> None:
        """End the process of the actor."""
        import ray

        ray.kill(self.actor)
