"""The interface between a supervisor and its workers: orders, messages, time limits, the pool that starts workers."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from icl_bench.runs.events import Progress
from icl_bench.runs.record import RunResult
from icl_bench.runs.spec import RunSpec

if TYPE_CHECKING:
    from icl_bench.harness.training.trainer import Machine

HEARTBEAT_SECONDS = 1.0
"""Seconds between two heartbeats of a worker."""
SECONDS_TO_SAVE = 30.0
"""Seconds in which a worker that was asked to end finishes its step and saves."""


class Limits(NamedTuple):
    """Time limits of a supervisor in seconds."""

    fleet: float | None = None
    """Time for a fleet to end; None for no limit."""
    silence: float = 60.0
    """Time without a message from a worker."""
    outside: float = 600.0
    """Time of one call of code from outside the package."""
    start: float = 600.0
    """Time for the first worker to be ready."""
    grace: float = SECONDS_TO_SAVE
    """Time for workers to finish their step and save when everything stops."""


class WorkerSetup(NamedTuple):
    """The settings that a worker takes from the process that starts it."""

    machine: "Machine"
    threads: int
    """Threads of torch on the CPU."""
    folder: Path
    """Current folder, which may hold layers of the user."""
    environment: Mapping[str, str]
    """Environment variables."""
    gpu: str | None = None
    """The one GPU that the worker may see, as CUDA_VISIBLE_DEVICES names it; None for all GPUs."""


class Order(NamedTuple):
    """A fleet for a worker, and the store for its results."""

    specs: Sequence[RunSpec]
    root: Path
    """Folder of the store."""


class Ready(NamedTuple):
    """The worker has started and waits for a fleet."""


class Heartbeat(NamedTuple):
    """The worker is alive."""

    outside: float = 0.0
    """Seconds that the worker has been in one call of code from outside the package; 0 where it is in none."""


class ProgressReport(NamedTuple):
    """The fleet of the worker has made progress."""

    progress: Progress


class Finished(NamedTuple):
    """The results of the fleet are committed."""

    results: list[RunResult]
    seconds: float
    """Seconds from the arrival of the order to the commit, measured by the worker."""
    unusable: bool
    """The worker cannot be used again: a fault on a GPU has broken its CUDA context, or it ran code from outside."""


class FleetError(NamedTuple):
    """The fleet met an error that is not a result of its runs: the user must change something, or the store is full."""

    error: Exception


class WorkerLost(NamedTuple):
    """The worker ended although nobody asked it to; its pool sends this message."""

    reason: str


Message = Ready | Heartbeat | ProgressReport | Finished | FleetError | WorkerLost


class Worker(Protocol):
    """A worker as the supervisor sees it."""

    def assign(self, order: Order) -> None:
        """Send a fleet to the worker, which must have none."""

    def ask_to_end(self) -> None:
        """Ask the worker to finish its step, save and end."""

    def kill(self) -> None:
        """End the worker at once and free its resources."""


class WorkerPool(Protocol):
    """Start workers and receive their messages."""

    def start(self) -> Worker:
        """Start a worker; its first message is `Ready`."""

    def listen(self, workers: Sequence[Worker], seconds: float) -> Iterator[tuple[Worker, Message]]:
        """Yield messages of these workers, waiting at most `seconds` for the first; `WorkerLost` is a worker's last."""

    def place_of(self, worker: Worker) -> object:
        """Return what a worker shares with those that train beside it on its GPU; by default it has a place alone."""
        return worker

    def kill_all(self, workers: Sequence[Worker]) -> None:
        """End these workers at once and free their resources."""
        for worker in workers:
            worker.kill()

    def close(self) -> None:
        """Free what the pool holds besides its workers."""
        return
