"""SLURM jobs that share the fleets of a submission through leases in the store.

N jobs are submitted, not one a run: a job lives as long as there is work, with workers of its own under a supervisor.
The process that submitted them watches the store, and submits again where all jobs ended and work is left. Jobs that
are told to end, because their time is over or others need the node, finish their step, save and give their leases back.
"""

import importlib.util
import json
import os
import secrets
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from icl_bench.errors import EngineError, IclBenchError
from icl_bench.harness import interruption
from icl_bench.harness.engines.leases import EXPIRY, LeaseQueue, Leases, fleet_name
from icl_bench.harness.engines.local import LocalCrew, cores
from icl_bench.harness.engines.supervisor import DEFAULT_LIMITS, Limits, Supervisor
from icl_bench.harness.training.fleet import Machine
from icl_bench.registry import load_plugins
from icl_bench.runs.events import Progress, Reporter
from icl_bench.runs.record import RunResult
from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store import Store

POLL = 1.0
"""Seconds between looks at the store."""
MINUTES = 24 * 60
"""Time limit of a job where none is given."""
MOST_IDLE_ROUNDS = 3
"""Submissions in a row whose jobs all end without a finished fleet."""
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
"""Signals that end a job: SLURM sends the last ahead of its time limit, as submitit asks it to."""


class Share(NamedTuple):
    """What the jobs of a submission have in common."""

    fleets: Path
    """The file that lists the fleets."""
    root: Path
    """The store."""
    folder: Path
    """Current folder, where a layer of one's own may lie."""
    machine: Machine
    workers: int
    """Workers of each job."""
    limits: Limits
    expiry: float


class SlurmEngine:
    """Jobs of a SLURM cluster.

    Args:
        machine: Where and how fleets run.
        workers: Number of jobs.
        limits: Time limits.
        settings: Parameters of submitit without its prefix, as partition, time, gpus_per_node; `cluster=local` starts
            the jobs as processes of this machine, to try things out.
        expiry: Seconds after which the lease of a job that vanished is passed on.

    Raises:
        EngineError: where submitit is not installed, or there is no SLURM.
    """

    def __init__(
        self,
        machine: Machine,
        workers: int,
        limits: Limits = DEFAULT_LIMITS,
        settings: Mapping[str, str | int] | None = None,
        expiry: float = EXPIRY,
    ) -> None:
        if importlib.util.find_spec("submitit") is None:
            raise EngineError("--engine slurm needs submitit; it is not installed; pip install 'icl-bench[slurm]'")
        self.settings = dict(settings or {})
        self.cluster = self.settings.pop("cluster", "slurm")
        if self.cluster == "slurm" and shutil.which("sbatch") is None:
            raise EngineError(
                "--engine slurm needs sbatch on the path; found none; go to a login node, or try --slurm cluster=local"
            )
        self.machine, self.workers, self.limits, self.expiry = machine, workers, limits, expiry

    def submit(self, fleets: Sequence[Sequence[RunSpec]], store: Store, reporter: Reporter) -> Iterator[RunResult]:
        """Submit jobs and pass on what appears in the store."""
        watch = Watch(fleets, store, reporter)
        jobs: list[Any] = []
        with interruption.deferred():
            try:
                while watch.left:
                    if all(job.done() for job in jobs):  # asked before the store is read: what they did last is seen
                        yield from watch.news()
                        watch.next_round(jobs)
                        jobs = self.send(list(watch.left.values()), store) if watch.left else jobs
                    interruption.check()
                    time.sleep(max(POLL, 1e-3 * len(watch.left)))
                    yield from watch.news()
            finally:
                end(jobs, 0.0 if watch.left else self.limits.grace, self.limits.grace)

    def send(self, fleets: Sequence[Sequence[RunSpec]], store: Store) -> list[Any]:
        """Submit the jobs."""
        import submitit

        folder = store.root.resolve() / "slurm" / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"
        folder.mkdir(parents=True)
        (folder / "fleets.json").write_text(json.dumps([[spec.labelled() for spec in fleet] for fleet in fleets]))
        on_gpu = self.machine.device.type == "cuda"
        given = {"timeout_min": self.settings.get("time", MINUTES), "cpus_per_task": 1, "gpus_per_node": int(on_gpu)}
        given |= {key: value for key, value in self.settings.items() if key != "time"}
        executor = submitit.AutoExecutor(folder=folder / "jobs", cluster=str(self.cluster))
        try:
            executor.update_parameters(name="icl-bench", **{prefixed(key): value for key, value in given.items()})
        except (NameError, ValueError, AssertionError) as error:
            raise EngineError(f"--slurm takes parameters of submitit; {' '.join(str(error).split())}") from None
        workers = 1 if on_gpu else int(given["cpus_per_task"])
        share = Share(
            folder / "fleets.json", store.root.resolve(), Path.cwd(), self.machine, workers, self.limits, self.expiry
        )
        count = min(self.workers, len(fleets))
        with executor.batch():
            return [executor.submit(attend, share, i * len(fleets) // count) for i in range(count)]

    def close(self) -> None:
        """Jobs end by themselves."""


def prefixed(key: str) -> str:
    """A parameter as submitit names it: those that only SLURM knows have a prefix."""
    return key if key in ("timeout_min", "cpus_per_task", "gpus_per_node", "mem_gb") else f"slurm_{key}"


def end(jobs: Sequence[Any], patience: float, grace: float) -> None:
    """Wait for jobs that have nothing left to do; cancel those that go on, and let them save."""
    if wait_for(jobs, patience):
        return
    for job in jobs:
        if not job.done():
            job.cancel(check=False)
    wait_for(jobs, grace)


def wait_for(jobs: Sequence[Any], seconds: float) -> bool:
    """Whether the jobs end within so many seconds."""
    until = time.monotonic() + seconds
    while not all(job.done() for job in jobs):
        if time.monotonic() >= until:
            return False
        time.sleep(POLL / 5)
    return True


class Watch:
    """What the store tells of a submission."""

    def __init__(self, fleets: Sequence[Sequence[RunSpec]], store: Store, reporter: Reporter) -> None:
        self.left = {fleet_name(fleet): fleet for fleet in fleets}
        self.store, self.reporter = store, reporter
        self.leases = Leases(store.root)
        self.begun: set[str] = set()
        self.at_round = len(self.left)
        self.idle_rounds = 0

    def news(self) -> Iterator[RunResult]:
        """Report fleets that were taken or finished since the last look."""
        taken = self.leases.generations()
        for name, fleet in list(self.left.items()):
            done = all(self.store.has(spec.id) for spec in fleet)
            if (done or name in taken) and name not in self.begun:
                self.begun.add(name)
                self.reporter.started(fleet)
            if done:
                del self.left[name]
                self.leases.release(name)  # its holder may be gone
                results = [self.store.load(spec.id).result for spec in fleet]
                self.reporter.finished(results)
                yield from results

    def next_round(self, jobs: Sequence[Any]) -> None:
        """Look at how the jobs of a round ended.

        Raises:
            IclBenchError: what a job met that the user must change.
            EngineError: where several rounds finished nothing.
        """
        problems = [job.exception() or job.result() for job in jobs]
        for problem in problems:
            if isinstance(problem, IclBenchError):
                raise problem
        self.idle_rounds = 0 if len(self.left) < self.at_round or not jobs else self.idle_rounds + 1
        self.at_round = len(self.left)
        if self.idle_rounds >= MOST_IDLE_ROUNDS:
            reason = next((str(problem).strip().splitlines()[-1] for problem in problems if problem), "no reason given")
            raise EngineError(
                f"jobs must finish runs; {self.idle_rounds} rounds of them ended without; {reason}; see their logs in "
                f"{self.store.root / 'slurm'}"
            )


class Silent:
    """Says nothing: whoever submitted the jobs watches the store."""

    def planned(self, runs: int, done: int) -> None:
        """Not told."""

    def started(self, specs: Sequence[RunSpec]) -> None:
        """Not told."""

    def progressed(self, specs: Sequence[RunSpec], progress: Progress) -> None:
        """Not told."""

    def lost(self, specs: Sequence[RunSpec], reason: str) -> None:
        """Not told."""

    def finished(self, results: Sequence[RunResult]) -> None:
        """Not told."""

    def closed(self) -> None:
        """Not told."""


def attend(share: Share, start: int) -> IclBenchError | None:
    """A job: takes fleets that nobody has in hand until none is left; returns what the user must change."""
    interruption.listen(ENDINGS)
    os.chdir(share.folder)
    load_plugins()
    plains = json.loads(share.fleets.read_text())
    fleets = [[RunSpec.model_validate(one) for one in fleet] for fleet in plains]
    store = Store(share.root)
    crew = LocalCrew(share.machine, 1 if share.machine.device.type == "cpu" else max(1, cores() // share.workers))
    supervisor = Supervisor(crew, share.workers, share.machine, share.limits)
    queue = LeaseQueue(fleets, store, Leases(share.root, share.expiry), start)
    try:
        for _ in supervisor.carry_out(queue, store, Silent()):
            pass
    except interruption.Interrupted:
        return None  # what is left is for the other jobs, or for the next round
    except IclBenchError as error:
        return error
    finally:
        supervisor.close()
    return None
