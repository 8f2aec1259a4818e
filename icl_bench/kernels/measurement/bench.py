"""Times of operators beside their peers, all in one run.

On CUDA the subjects (this library, PyTorch, each package) run in processes of their own, one at a time, after their
kernels were compiled in parallel: a peer that hangs, dies or spoils its CUDA context takes no other subject with it.
They take turns case by case, so that a case that was reached has the times of all of its contenders.
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from icl_bench.errors import ArgumentError
from icl_bench.kernels.measurement import measure, peers
from icl_bench.kernels.measurement.compilation import (
    PipedProcess,
    compile_tasks,
    compiler_caches,
    end_process,
    import_peer,
    start_process,
    task_title,
)
from icl_bench.kernels.measurement.measure import TimedRow, TimingTask, blank_row
from icl_bench.kernels.measurement.operators import timed_cases
from icl_bench.kernels.measurement.problem import Subject

COMPILING_SHARE = 0.33
"""Largest share of the time for compilation, where it is measured after it."""
STARTING = 60.0
"""Seconds that a process may take to start."""
SILENCE = 6.0
"""Seconds beyond its deadline after which a silent process is ended."""
LONGEST_TURN = 8.0
"""Most time of a turn, in equal shares of the time that is left to all turns to come; autotuners need several."""
ORDER: tuple[Subject, ...] = ("ours", "fla", "retention", "mamba_ssm", "torch", "compiled", "plain")
"""The order of subjects in a case."""
LATE: tuple[Subject, ...] = ("compiled", "plain")
"""Subjects that come after all cases, since each may take as long as all else."""


def bench_operators(
    device: torch.device,
    ops: Sequence[str] = (),
    quick: bool = False,
    seconds: float = 360.0,
    tell: Callable[[str], None] = lambda line: None,
    keep: Callable[[TimedRow], None] = lambda row: None,
    cache: Path | None = None,
    compile_only: bool = False,
) -> list[TimedRow]:
    """Return a row for each contender of `timed_cases`, with times or with a note that gives the reason for none.

    All takes about `seconds` seconds, and a few more where a process does not answer; what comes later is out of time.
    `tell` is called with a line, and `keep` with the row, when a contender is done. Compiled kernels stay in the folder
    `cache`, and those of a former run are found there; by default all are compiled from nothing. `compile_only` fills
    that folder on a CUDA device, and returns no row.

    Raises:
        ArgumentError: An operator is unknown, or there is no folder or no CUDA device for `compile_only`.
    """
    tasks = [(case, name) for case in timed_cases(device, tuple(ops), quick) for name in case.contenders]
    if compile_only and (cache is None or device.type != "cuda"):
        raise ArgumentError("--compile-only takes --cache and a GPU; got one without: give the folder of the kernels")
    if compile_only:
        begun = time.monotonic()
        with compiler_caches(cache) as folder:
            compile_tasks(_present(tasks), device, begun + seconds, folder)
        tell(f"compiled in {time.monotonic() - begun:.0f} s")
        return []

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


def _present(tasks: Sequence[TimingTask]) -> dict[Subject, list[TimingTask]]:
    """Return the tasks whose packages are installed, by their owners."""
    present: dict[Subject, list[TimingTask]] = {}
    for case, name in tasks:
        if peers.installed(case.problem, name):
            present.setdefault(peers.subject_of(case.problem, name), []).append((case, name))
    return present


def measure_in_processes(
    tasks: Sequence[TimingTask], device: torch.device, seconds: float, tell: Callable[[str], None],
    done: Callable[[TimedRow], None], cache: Path | None = None,
) -> list[TimedRow]:  # fmt: skip
    """Return the row of each task, in their order: compile all, then measure case by case."""
    begun = time.monotonic()
    rows = {task: blank_row(*task, note="not installed") for task in tasks}
    present, running = _present(tasks), dict[Subject, PipedProcess]()
    with compiler_caches(cache) as folder:
        try:
            for subject in present:
                running[subject] = start_process(serve_tasks, subject, device)
            compiled = compile_tasks(present, device, begun + COMPILING_SHARE * seconds, folder)
            for child in running.values():
                wait_until_ready(child)
            tell(f"compiled in {time.monotonic() - begun:.0f} s")
            turns = turns_of(tasks, present)
            for place, (subject, asked) in enumerate(turns):
                left = begun + seconds - time.monotonic()
                if not running[subject].process.is_alive():  # ended in an earlier turn
                    running[subject] = start_process(serve_tasks, subject, device)
                    wait_until_ready(running[subject])
                deadline = time.monotonic() + left * min(1.0, LONGEST_TURN / (len(turns) - place))
                for task, row in zip(asked, _ask(running[subject], asked, deadline), strict=True):
                    rows[task] = row._replace(compile_seconds=compiled.get(task_title(task)))
                    done(rows[task])
        finally:
            for child in running.values():
                end_process(child.process)
    return [rows[task] for task in tasks]


def turns_of(
    tasks: Sequence[TimingTask], present: Mapping[Subject, Sequence[TimingTask]]
) -> list[tuple[Subject, list[TimingTask]]]:
    """Return what each process is asked, turn after turn: the contenders of one subject on one case.

    Among late subjects, cases that have no other peer come first.
    """
    owners = {task: subject for subject, owned in present.items() for task in owned}
    places = {case: place for place, case in enumerate(dict.fromkeys(case for case, _ in tasks))}
    served = {case for (case, _), subject in owners.items() if subject not in ("ours", *LATE)}

    def rank(task: TimingTask) -> tuple[int, bool, int, int]:
        late = LATE.index(owners[task]) + 1 if owners[task] in LATE else 0
        return late, late > 0 and task[0] in served, places[task[0]], ORDER.index(owners[task])

    return [(ORDER[key[-1]], list(turn)) for key, turn in itertools.groupby(sorted(owners, key=rank), rank)]


def serve_tasks(pipe: Connection, subject: Subject, device: torch.device) -> None:
    """Send None once the device is in use, then rows for each list of tasks that comes, until the pipe is closed."""
    torch.empty(1, device=device)
    pipe.send(None)
    with contextlib.suppress(EOFError):
        while True:
            tasks, seconds = pipe.recv()
            deadline = time.monotonic() + seconds
            import_peer(subject, tasks, device)
            for row in measure.measure_tasks(tasks, device, deadline):
                pipe.send(row)


def wait_until_ready(child: PipedProcess) -> None:
    """Wait until a process has a context on the device: while one is made, nothing else is timed right."""
    with contextlib.suppress(EOFError, ConnectionResetError):  # a dead process has rows that say so
        if child.pipe.poll(STARTING):
            child.pipe.recv()


def _ask(child: PipedProcess, tasks: Sequence[TimingTask], deadline: float) -> Iterator[TimedRow]:
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
                end_process(child.process)
                note = "out of time"
        except (EOFError, ConnectionResetError):
            note = "its process died"
        yield row or blank_row(*task, note=note)
