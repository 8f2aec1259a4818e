"""Measuring in processes: kernels compiled in parallel first, then one subject at a time.

A peer that hangs, dies or spoils its CUDA context takes no other subject with it.
"""

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import NamedTuple

import torch

from icl_bench.kernels.measurement.cases import Case, Part
from icl_bench.kernels.measurement.contenders import (
    PACKAGES,
    Subject,
    hasten,
    installed,
    keep_share,
    operator,
    subject_of,
)
from icl_bench.kernels.measurement.measure import Row, blank, carry_out, passes, release
from icl_bench.kernels.measurement.problems import make_inputs

Task = tuple[Case, str]
COMPILING = 0.33
"""Share of the time that compilation may take."""
GRACE = 6.0
"""Seconds beyond its deadline after which a silent process is ended."""
CAPS: tuple[tuple[Part, Subject, float], ...] = (
    ("table", "ours", 0.2),
    ("table", "torch", 0.2),
    ("table", "fla", 0.1),
    ("table", "retention", 0.35),
    ("crossover", "ours", 0.25),
    ("crossover", "torch", 0.25),
    ("table", "plain", 0.2),
)
"""The order of measuring, and the largest share of the time that each may take."""
COMPILED = ("auto", "triton", "flex")
"""Contenders that compile kernels, beside the packages."""
WORKERS: dict[Subject, int] = {"ours": 7, "torch": 1, "fla": 2, "retention": 6}
"""Processes that compile for each subject that compiles anything, on 16 cores."""


class Subprocess(NamedTuple):
    """A process that measures a subject's rows when it is told to."""

    process: BaseProcess
    pipe: Connection


def measure_in_processes(
    cases: Sequence[Case], device: torch.device, seconds: float, tell: Callable[[str], None]
) -> list[Row]:
    """Compile, then measure subject by subject; every task has a row, in the order of the cases."""
    begun = time.monotonic()
    context = multiprocessing.get_context("spawn")
    tasks = [(case, name) for case in cases for name in case.contenders]
    present: dict[Subject, list[Task]] = {}
    for task in tasks:
        if installed(task[1]):
            present.setdefault(subject_of(task[1]), []).append(task)
    running: dict[Subject, Subprocess] = {}
    rows: dict[Task, Row] = {task: blank(*task, note="not installed") for task in tasks if not installed(task[1])}
    try:
        for subject in present:
            near, far = context.Pipe()
            process = context.Process(target=serve, args=(far, subject, device))
            process.start()
            far.close()
            running[subject] = Subprocess(process, near)
        _compile(present, device, begun + COMPILING * seconds)
        tell(f"compiled in {time.monotonic() - begun:.0f} s")
        for part, subject, cap in CAPS:
            asked = [task for task in present.get(subject, []) if task[0].part == part]
            deadline = min(begun + seconds, time.monotonic() + cap * seconds)
            for task, row in zip(asked, _ask(running.get(subject), asked, deadline), strict=True):
                tell(f"{row.case}: {row.contender} {row.note}".rstrip())
                rows[task] = row
    finally:
        for child in running.values():
            _end(child.process)
    return [rows[task] for task in tasks]


def serve(pipe: Connection, subject: Subject, device: torch.device) -> None:
    """The life of a measuring process: rows for each list of tasks that comes, until the pipe is closed."""
    torch.empty(1, device=device)
    prepared = False
    with contextlib.suppress(EOFError):
        while True:
            tasks, seconds = pipe.recv()
            if not prepared and subject in PACKAGES:
                _import_peer(subject, tasks, device)
                hasten(subject)
            prepared = True
            for row in carry_out(tasks, device, time.monotonic() + seconds):
                pipe.send(row)


def compile_share(subject: Subject, tasks: Sequence[Task], device: torch.device, share: int, shares: int) -> None:
    """Run a share of the tasks once, or, of a package that autotunes, all tasks with a share of the configurations."""
    torch.set_num_threads(1)
    mine = list(tasks) if subject in PACKAGES else _share(tasks, share, shares)
    if subject in PACKAGES:
        _import_peer(subject, tasks, device)
        keep_share(subject, share, shares)
        hasten(subject)
    for case, name in mine:
        problem = case.problem._replace(n=min(case.problem.n, 2))  # one sequence may compile to other code
        with contextlib.suppress(Exception):  # what cannot run says so when it is measured
            for call in passes(operator(name, problem, device), make_inputs(problem, device)):
                call()
        release(device)


def _share(tasks: Sequence[Task], share: int, shares: int) -> list[Task]:
    """Tasks that compile to the same kernels stay together; plain forms and PyTorch's backends have none to compile."""
    compiled = [(case, name) for case, name in tasks if name in COMPILED]
    kinds = {(case.problem.name, case.problem.key, name): None for case, name in compiled}
    mine = list(kinds)[share::shares]
    return [(case, name) for case, name in compiled if (case.problem.name, case.problem.key, name) in mine]


def _import_peer(subject: Subject, tasks: Sequence[Task], device: torch.device) -> None:
    operator(subject, tasks[0][0].problem, device)


def _compile(present: dict[Subject, list[Task]], device: torch.device, deadline: float) -> None:
    context = multiprocessing.get_context("spawn")
    scale = min(1.0, (os.cpu_count() or 1) / 16)
    workers = []
    try:
        for subject in [name for name in WORKERS if name in present]:
            shares = max(1, round(scale * WORKERS[subject]))
            for share in range(shares):
                worker = context.Process(target=compile_share, args=(subject, present[subject], device, share, shares))
                worker.start()
                workers.append(worker)
        for worker in workers:
            worker.join(max(0.0, deadline - time.monotonic()))
    finally:
        for worker in workers:
            _end(worker)


def _ask(child: Subprocess | None, tasks: Sequence[Task], deadline: float) -> Iterator[Row]:
    """The rows of the tasks; once the process is dead or silent beyond its deadline, rows that say so."""
    note = ""
    if child is None:
        return
    try:
        child.pipe.send((list(tasks), deadline - time.monotonic())) if tasks else None
    except (BrokenPipeError, OSError):
        note = "its process had died"
    for task in tasks:
        if not note:
            row, note = _receive(child, deadline)
            if row is not None:
                yield row
                continue
        yield blank(*task, note=note)


def _receive(child: Subprocess, deadline: float) -> tuple[Row | None, str]:
    if not child.pipe.poll(max(0.0, deadline + GRACE - time.monotonic())):
        _end(child.process)
        return None, "out of time"
    try:
        row: Row = child.pipe.recv()
    except (EOFError, ConnectionResetError):
        return None, "its process died"
    return row, ""


def _end(process: BaseProcess) -> None:
    if process.is_alive():
        process.kill()
    process.join()
