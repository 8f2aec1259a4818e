"""Times of operators beside their peers, all in one run.

On CUDA the subjects (this library, PyTorch, each package) run in processes of their own, one at a time, after their
kernels were compiled in parallel: a peer that hangs, dies or spoils its CUDA context takes no other subject with it.
"""

import contextlib
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import torch

from icl_bench.kernels.measurement import measure, peers
from icl_bench.kernels.measurement.measure import TimedRow, TimingTask, blank_row
from icl_bench.kernels.measurement.operators import timed_cases
from icl_bench.kernels.measurement.peers import PACKAGES
from icl_bench.kernels.measurement.problem import CasePart, ContenderRun, Subject, Tensors

SPAWN = multiprocessing.get_context("spawn")
COMPILING_SHARE = 0.33
"""Largest share of the time for compilation."""
SILENCE = 6.0
"""Seconds beyond its deadline after which a silent process is ended."""
TIME_SHARES: tuple[tuple[CasePart, Subject, float], ...] = (
    ("table", "ours", 0.2),
    ("table", "torch", 0.2),
    ("table", "fla", 0.35),
    ("table", "mamba_ssm", 0.1),
    ("table", "retention", 0.35),
    ("crossover", "ours", 0.25),
    ("crossover", "torch", 0.25),
    ("table", "plain", 0.2),
    ("table", "compiled", 0.2),
)
"""The order of measuring, and the largest share of the time for each."""
COMPILED = ("auto", "triton", "flex")
"""Contenders that compile kernels, beside the packages and compiled forms."""
CACHES = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
"""Variables of the environment that name folders of compiled kernels."""
FIRST_SECONDS = "first-seconds.json"
"""File of a cache with the seconds of first compilations."""
COMPILERS: dict[Subject, int] = {"ours": 7, "torch": 1, "fla": 6, "retention": 6, "compiled": 3}
"""Processes that compile for each subject with kernels to compile, on 16 cores."""


def bench_operators(
    device: torch.device,
    ops: Sequence[str] = (),
    quick: bool = False,
    seconds: float = 360.0,
    tell: Callable[[str], None] = lambda line: None,
    keep: Callable[[TimedRow], None] = lambda row: None,
    cache: Path | None = None,
) -> list[TimedRow]:
    """Return a row for each contender of `timed_cases`, with times or with a note that gives the reason for none.

    All takes about `seconds` seconds, and a few more where a process does not answer; what comes later is out of time.
    `tell` is called with a line, and `keep` with the row, when a contender is done. Compiled kernels stay in the folder
    `cache`, and those of a former run are found there; by default all are compiled from nothing.
    """
    tasks = [(case, name) for case in timed_cases(device, tuple(ops), quick) for name in case.contenders]

    def done(row: TimedRow) -> None:
        tell(f"{row.case}: {row.contender} {row.note}".rstrip())
        keep(row)

    if device.type == "cuda":
        return measure_in_processes(tasks, device, seconds, tell, done, cache)
    rows = []
    for row in measure.measure_tasks(tasks, device, time.monotonic() + seconds):
        done(row)
        rows.append(row)
    return rows


class MeasuringProcess(NamedTuple):
    """A process that measures the tasks that it is sent."""

    process: BaseProcess
    pipe: Connection


def measure_in_processes(
    tasks: Sequence[TimingTask], device: torch.device, seconds: float, tell: Callable[[str], None],
    done: Callable[[TimedRow], None], cache: Path | None = None,
) -> list[TimedRow]:  # fmt: skip
    """Return the row of each task, in their order: compile all, then measure subject by subject."""
    begun = time.monotonic()
    present: dict[Subject, list[TimingTask]] = {}
    rows = {task: blank_row(*task, note="not installed") for task in tasks}
    for case, name in tasks:
        if peers.installed(case.problem, name):
            present.setdefault(peers.subject_of(case.problem, name), []).append((case, name))
    running: dict[Subject, MeasuringProcess] = {}
    with _caches(cache) as folder:
        try:
            for subject in present:
                near, far = SPAWN.Pipe()
                process = SPAWN.Process(target=serve_tasks, args=(far, subject, device))
                process.start()
                far.close()
                running[subject] = MeasuringProcess(process, near)
            found = _compile(present, device, begun + COMPILING_SHARE * seconds)
            compiled = first_seconds(folder / FIRST_SECONDS, found)
            tell(f"compiled in {time.monotonic() - begun:.0f} s")
            for part, subject, cap in TIME_SHARES:
                asked = [task for task in present.get(subject, []) if task[0].part == part]
                deadline = min(begun + seconds, time.monotonic() + cap * seconds)
                for task, row in zip(asked, _ask(running[subject], asked, deadline) if asked else (), strict=True):
                    rows[task] = row._replace(compile_seconds=compiled.get(task_title(task)))
                    done(rows[task])
        finally:
            for child in running.values():
                _end(child.process)
    return [rows[task] for task in tasks]


def task_title(task: TimingTask) -> str:
    """Return the name of a case and its contender."""
    case, name = task
    return f"{case.title}: {name}"


def first_seconds(file: Path, found: Mapping[TimingTask, float]) -> dict[str, float]:
    """Return the seconds of compilation by title, those that a file has from a former run first; write the file."""
    known = json.loads(file.read_text()) if file.exists() else {}
    seconds: dict[str, float] = {task_title(task): taken for task, taken in found.items()} | known
    file.write_text(json.dumps(seconds))
    return seconds


@contextlib.contextmanager
def _caches(kept: Path | None) -> Iterator[Path]:
    """Let child processes keep compiled kernels in `kept`, or in a new folder: then compilation is from nothing."""
    before = {name: os.environ.get(name) for name in CACHES}
    with contextlib.ExitStack() as stack:
        folder = kept or Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        folder.mkdir(parents=True, exist_ok=True)
        for choice in folder.rglob("*.autotune.json"):  # perhaps made on a device that other work shared
            choice.unlink()
        try:
            os.environ.update({name: str((folder / name).absolute()) for name in CACHES})
            yield folder
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def serve_tasks(pipe: Connection, subject: Subject, device: torch.device) -> None:
    """Send rows for each list of tasks that comes through the pipe, until it is closed."""
    torch.empty(1, device=device)
    with contextlib.suppress(EOFError):
        while True:
            tasks, seconds = pipe.recv()
            _import_peer(subject, tasks, device)
            for row in measure.measure_tasks(tasks, device, time.monotonic() + seconds):
                pipe.send(row)


def compile_share(
    pipe: Connection, subject: Subject, tasks: Sequence[TimingTask], device: torch.device, share: int, shares: int
) -> None:
    """Run a share of the tasks twice, or, of a package that autotunes, all with a share of the configurations.

    Send the place of each task with the seconds that its first run took beyond its second one.
    """
    torch.set_num_threads(1)
    _import_peer(subject, tasks, device)
    if subject in PACKAGES:
        peers.keep_share(subject, share, shares)
    for case, name in tasks if subject in PACKAGES else _share(tasks, share, shares):
        # One sequence may compile to other code, and PyTorch compiles for every number of them.
        problem = case.problem if peers.subject_of(case.problem, name) == "compiled" else case.problem.few()
        with contextlib.suppress(Exception):  # what cannot run says so when it is measured
            run = peers.contender_run(problem, name, device)
            inputs = peers.stored_inputs(problem, name, problem.inputs(device))
            taken = [_seconds_of_passes(run, inputs, device) for _ in range(2)]
            if subject not in PACKAGES:
                pipe.send((tasks.index((case, name)), max(0.0, taken[0] - taken[1])))
        measure.free_memory(device)


def _seconds_of_passes(run: ContenderRun, inputs: Tensors, device: torch.device) -> float:
    begin = time.perf_counter()
    for call in measure.timed_passes(run, inputs):
        call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def _share(tasks: Sequence[TimingTask], share: int, shares: int) -> list[TimingTask]:
    """Return a share of the tasks that compile kernels; those that compile to the same kernels stay together."""
    kinds: dict[object, list[TimingTask]] = {}
    for case, name in tasks:
        if name in COMPILED or name.startswith("compiled"):
            widths = tuple((letter, size) for letter, size in case.problem.sizes.items() if letter in "KVCS")
            kinds.setdefault((case.problem.name, widths, name), []).append((case, name))
    return [task for group in list(kinds.values())[share::shares] for task in group]


def _import_peer(subject: Subject, tasks: Sequence[TimingTask], device: torch.device) -> None:
    if subject in PACKAGES:
        for case, name in tasks:
            with contextlib.suppress(Exception):  # what cannot be imported says so when it is measured
                peers.contender_run(case.problem, name, device)
        peers.shorten_autotuning(subject)


def _compile(
    present: dict[Subject, list[TimingTask]], device: torch.device, deadline: float
) -> dict[TimingTask, float]:
    """Compile in parallel until the deadline; return the seconds of the tasks of which they are known."""
    scale = min(2.0, len(os.sched_getaffinity(0)) / 16)
    workers: list[tuple[MeasuringProcess, list[TimingTask]]] = []
    seconds: dict[TimingTask, float] = {}
    try:
        for subject in [name for name in COMPILERS if name in present]:
            shares, tasks = max(1, round(scale * COMPILERS[subject])), present[subject]
            for share in range(shares):
                near, far = SPAWN.Pipe()
                process = SPAWN.Process(target=compile_share, args=(far, subject, tasks, device, share, shares))
                process.start()
                far.close()
                workers.append((MeasuringProcess(process, near), tasks))
        for worker, tasks in workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            with contextlib.suppress(EOFError):
                while worker.pipe.poll():
                    place, taken = worker.pipe.recv()
                    seconds[tasks[place]] = taken
    finally:
        for worker, _ in workers:
            _end(worker.process)
    return seconds


def _ask(child: MeasuringProcess, tasks: Sequence[TimingTask], deadline: float) -> Iterator[TimedRow]:
    """Yield the rows of the tasks; once the process is dead or silent beyond its deadline, rows that say so."""
    note = ""
    try:
        child.pipe.send((list(tasks), deadline - time.monotonic()))
    except OSError:
        note = "its process had died"
    for task in tasks:
        row: TimedRow | None = None
        try:
            if not note and child.pipe.poll(max(0.0, deadline + SILENCE - time.monotonic())):
                row = child.pipe.recv()
            elif not note:
                _end(child.process)
                note = "out of time"
        except (EOFError, ConnectionResetError):
            note = "its process died"
        yield row or blank_row(*task, note=note)


def _end(process: BaseProcess) -> None:
    if process.is_alive():
        process.kill()
    process.join()
