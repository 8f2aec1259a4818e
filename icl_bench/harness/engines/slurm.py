"""Run fleets in SLURM jobs that share the fleets of a submission through leases in the store.

N jobs are submitted, not one for each run: a job lives as long as fleets are left, and has workers of its own under a
supervisor. The process that submitted the jobs watches the store, and submits again if all jobs have ended and fleets
are left. A job that is told to end, because its time is over or others need the node, finishes its step, saves and
releases its leases.
"""

import json
import os
import secrets
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, model_validator

from icl_bench.errors import EngineError, IclBenchError
from icl_bench.harness import interruption
from icl_bench.harness.engines.base import ENGINES, Agenda, Engine, EngineConfig
from icl_bench.harness.engines.leases import EXPIRY, Leases, lease_name
from icl_bench.harness.engines.messages import Limits
from icl_bench.harness.engines.queues import LeaseQueue
from icl_bench.isolation import usable_cores
from icl_bench.registry import load_plugins
from icl_bench.runs.events import Reporter, SilentReporter
from icl_bench.runs.record import RunResult
from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store import Store

if TYPE_CHECKING:
    from icl_bench.harness.training.trainer import Machine

STORE_POLL_SECONDS = 1.0
"""Seconds between two looks at the store."""
DEFAULT_MINUTES = 24 * 60
"""Time limit of a job in minutes if none is given."""
MOST_IDLE_ROUNDS = 3
"""Rounds of jobs in a row that may end without a finished fleet."""
END_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
"""Signals that end a job: submitit has SLURM send the last one before the time limit."""


@ENGINES.register("slurm")
class Slurm(EngineConfig):
    """Run fleets in SLURM jobs that share the store; further options are parameters of submitit, without its prefix."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, bool | int | float | str]

    package: ClassVar[str | None] = "submitit"
    program: ClassVar[str | None] = "sbatch"
    elsewhere: ClassVar[bool] = True

    workers: int = Field(ge=1)
    """Number of jobs."""
    timeout: float | None = Field(default=None, ge=0.1)
    """Seconds after which a fleet is ended and recorded as `timeout`; by default none."""
    partition: str | None = None
    """Partition of the jobs."""
    time: int = Field(default=DEFAULT_MINUTES, ge=1)
    """Time limit of each job in minutes."""
    cpus_per_task: int = Field(default=1, ge=1)
    """Cores of each job, and its worker processes on a CPU."""
    gpus_per_node: int | None = Field(default=None, ge=0)
    """GPUs of each job; by default one if the device is `cuda`."""
    cluster: Literal["slurm", "local"] = "slurm"
    """`local` starts the jobs as processes of this machine, to try things out."""

    @model_validator(mode="before")
    @classmethod
    def _check_workers_are_given(cls, given: Mapping[str, object]) -> Mapping[str, object]:
        if "workers" not in given:
            raise ValueError("the number of jobs must be given; got none; write slurm:workers=8")
        return given

    def start(self, machine: "Machine") -> "SlurmEngine":
        """Return the running engine; raises EngineError if this machine cannot submit jobs."""
        if self.cluster == "slurm" and shutil.which("sbatch") is None:
            raise EngineError(
                "--engine slurm needs sbatch on the path; found none; use a login node, or try slurm:cluster=local"
            )
        return SlurmEngine(self, machine, Limits(fleet=self.timeout))

    def job_parameters(self, on_gpu: bool) -> dict[str, Any]:
        """Return the parameters of each job as submitit names them: those of SLURM alone have a prefix."""
        gpus = int(on_gpu) if self.gpus_per_node is None else self.gpus_per_node
        passed = {"partition": self.partition, **self.__pydantic_extra__}.items()
        own = {key if key == "mem_gb" else f"slurm_{key}": value for key, value in passed}
        return {"timeout_min": self.time, "cpus_per_task": self.cpus_per_task, "gpus_per_node": gpus, **own}


class SlurmEngine(Engine):
    """The running engine: submit jobs, which end by themselves, and watch the store.

    `limits` are those of the supervisor in each job; the lease of a vanished job is passed on after `expiry` seconds.
    """

    def __init__(self, config: Slurm, machine: "Machine", limits: Limits, expiry: float = EXPIRY) -> None:
        self.config, self.machine, self.limits, self.expiry = config, machine, limits, expiry

    def submit(self, agenda: Agenda, store: Store, reporter: Reporter) -> Iterator[RunResult]:
        """Submit jobs and yield the results that appear in the store; fleets that are added wait for the next jobs."""
        while agenda:
            yield from self.submit_round(agenda.take_all(), store, reporter)

    def submit_round(
        self, fleets: Sequence[Sequence[RunSpec]], store: Store, reporter: Reporter
    ) -> Iterator[RunResult]:
        """Submit jobs for these fleets, again where they end too early, until all results are in the store."""
        watcher = SubmissionWatcher(fleets, store, reporter)
        jobs: list[Any] = []
        with interruption.deferred():
            try:
                while watcher.left:
                    if all(job.done() for job in jobs):  # checked before the store is read, to see their last results
                        yield from watcher.new_results()
                        watcher.check_round(jobs)
                        jobs = self.send(list(watcher.left.values()), store) if watcher.left else jobs
                    interruption.raise_if_interrupted()
                    time.sleep(max(STORE_POLL_SECONDS, 1e-3 * len(watcher.left)))
                    yield from watcher.new_results()
            finally:
                end_jobs(jobs, 0.0 if watcher.left else self.limits.grace, self.limits.grace)

    def send(self, fleets: Sequence[Sequence[RunSpec]], store: Store) -> list[Any]:
        """Submit the jobs and return them."""
        import submitit

        folder = store.root.resolve() / "slurm" / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"
        folder.mkdir(parents=True)
        (folder / "fleets.json").write_text(json.dumps([[spec.labelled() for spec in fleet] for fleet in fleets]))
        on_gpu = self.machine.device.type == "cuda"
        executor = submitit.AutoExecutor(folder=folder / "jobs", cluster=self.config.cluster)
        try:
            executor.update_parameters(name="icl-bench", **self.config.job_parameters(on_gpu))
        except (NameError, ValueError, AssertionError) as error:
            reason = " ".join(str(error).split())
            raise EngineError(f"further options of --engine slurm are parameters of submitit; {reason}") from None
        common = (folder / "fleets.json", store.root.resolve(), Path.cwd())
        count = min(self.config.workers, len(fleets))
        with executor.batch():
            return [executor.submit(self.run_job, *common, i * len(fleets) // count) for i in range(count)]

    def run_job(self, listed: Path, root: Path, folder: Path, start: int) -> IclBenchError | None:
        """Run free fleets inside a job until none is left; return the error, if any, that the user must correct.

        The file `listed` lists the fleets, and the search for a free one begins at index `start`. The store has the
        folder `root`. The folder of the submitting process, `folder`, may hold layers of the user.
        """
        from icl_bench.harness.engines.local import ProcessPool
        from icl_bench.harness.engines.supervisor import Supervisor

        interruption.listen(END_SIGNALS)
        os.chdir(folder)
        load_plugins()
        fleets = [[RunSpec.model_validate(one) for one in fleet] for fleet in json.loads(listed.read_text())]
        on_gpu = self.machine.device.type == "cuda"
        workers, threads = (1, usable_cores()) if on_gpu else (self.config.cpus_per_task, 1)
        supervisor = Supervisor(ProcessPool(self.machine, threads, workers), workers, self.machine, self.limits)
        store, leases = Store(root), Leases(root, self.expiry)
        try:
            for _ in supervisor.run_queue(LeaseQueue(fleets, store, leases, start), store, SilentReporter()):
                pass
        except interruption.Interrupted:
            return None  # the other jobs or the next round run what is left
        except IclBenchError as error:
            return error
        finally:
            supervisor.close()
        return None


def end_jobs(jobs: Sequence[Any], patience: float, grace: float) -> None:
    """Wait `patience` seconds for the jobs to end, then cancel the others and wait `grace` seconds while they save."""
    if have_ended(jobs, patience):
        return
    for job in jobs:
        if not job.done():
            job.cancel(check=False)
    have_ended(jobs, grace)


def have_ended(jobs: Sequence[Any], seconds: float) -> bool:
    """Wait until all jobs have ended, at most `seconds`; return True if they have."""
    until = time.monotonic() + seconds
    while not all(job.done() for job in jobs):
        if time.monotonic() >= until:
            return False
        time.sleep(STORE_POLL_SECONDS / 5)
    return True


class SubmissionWatcher:
    """Follow a submission in the store: which fleets have started and which are finished."""

    def __init__(self, fleets: Sequence[Sequence[RunSpec]], store: Store, reporter: Reporter) -> None:
        self.left = {lease_name(fleet): fleet for fleet in fleets}
        self.store, self.reporter = store, reporter
        self.leases = Leases(store.root)
        self.started: set[str] = set()
        self.left_at_round = len(self.left)
        self.idle_rounds = 0

    def new_results(self) -> Iterator[RunResult]:
        """Report the fleets that started or finished since the last call, and yield the results of the latter."""
        leased = self.leases.generations()
        for name, fleet in list(self.left.items()):
            done = all(self.store.has(spec.id) for spec in fleet)
            if (done or name in leased) and name not in self.started:
                self.started.add(name)
                self.reporter.started(fleet)
            if done:
                del self.left[name]
                self.leases.release(name)  # its holder may be gone
                results = [self.store.load(spec.id).result for spec in fleet]
                self.reporter.finished(results)
                yield from results

    def check_round(self, jobs: Sequence[Any]) -> None:
        """Raise the error of a job that the user must correct, or EngineError after rounds that finished no fleet."""
        problems = [job.exception() or job.result() for job in jobs]
        for problem in problems:
            if isinstance(problem, IclBenchError):
                raise problem
        self.idle_rounds = 0 if len(self.left) < self.left_at_round or not jobs else self.idle_rounds + 1
        self.left_at_round = len(self.left)
        if self.idle_rounds >= MOST_IDLE_ROUNDS:
            reason = next((str(problem).strip().splitlines()[-1] for problem in problems if problem), "no reason given")
            raise EngineError(
                f"jobs must finish runs; {self.idle_rounds} rounds of jobs ended without; {reason}; see their logs in "
                f"{self.store.root / 'slurm'}"
            )
