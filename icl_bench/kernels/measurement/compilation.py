"""Compilation of the kernels of all contenders in parallel, before any of them is timed."""

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
from typing import Any, NamedTuple

import torch

from icl_bench.kernels.measurement import measure, peers
from icl_bench.kernels.measurement.measure import TimingTask
from icl_bench.kernels.measurement.peers import PACKAGES
from icl_bench.kernels.measurement.problem import ContenderRun, Subject, Tensors

SPAWN = multiprocessing.get_context("spawn")
COMPILED = ("auto", "triton", "flex")
"""Contenders that compile kernels, beside the packages and compiled forms."""
CACHES = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
"""Variables of the environment that name folders of compiled kernels."""
COMPILED_FILE = "compiled.json"
"""File of a cache with seconds of first compilations, and titles of tasks all of whose kernels are there."""
COMPILERS: dict[Subject, int] = {"ours": 7, "torch": 1, "fla": 6, "retention": 6, "compiled": 3}
"""Processes that compile for each subject with kernels to compile, on 16 cores."""
PEER_TOKENS = 64
"""Tokens with which kernels of packages are compiled for all sequences: one of their chunks."""


def task_title(task: TimingTask) -> str:
    """Return the name of a case and its contender."""
    case, name = task
    return f"{case.title}: {name}"


@contextlib.contextmanager
def compiler_caches(kept: Path | None) -> Iterator[Path]:
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


class PipedProcess(NamedTuple):
    """A process, and the near end of a pipe whose far end it has."""

    process: BaseProcess
    pipe: Connection


def start_process(target: Callable[..., None], *arguments: Any) -> PipedProcess:
    """Start a process that is given the far end of a pipe before the arguments."""
    near, far = SPAWN.Pipe()
    process = SPAWN.Process(target=target, args=(far, *arguments))
    process.start()
    far.close()
    return PipedProcess(process, near)


def end_process(process: BaseProcess) -> None:
    """Kill a process that still runs, and wait for its end."""
    if process.is_alive():
        process.kill()
    process.join()


def compile_tasks(
    present: Mapping[Subject, Sequence[TimingTask]], device: torch.device, deadline: float, folder: Path
) -> dict[str, float]:
    """Compile in parallel until the deadline, but what a former run compiled; return seconds by title of a task."""
    file = folder / COMPILED_FILE
    known: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"seconds": {}, "complete": []}
    scale = min(2.0, len(os.sched_getaffinity(0)) / 16)
    workers: dict[Subject, list[PipedProcess]] = {}
    try:
        for subject in [name for name in COMPILERS if name in present]:
            shares, tasks = max(1, round(scale * COMPILERS[subject])), present[subject]
            if {task_title(task) for task in tasks} <= {*known["complete"]}:
                continue
            workers[subject] = [
                start_process(compile_share, subject, tasks, device, share, shares) for share in range(shares)
            ]
        for subject, started in workers.items():
            for worker in started:
                worker.process.join(max(0.0, deadline - time.monotonic()))
                for place, taken in _sent(worker.pipe):
                    known["seconds"].setdefault(task_title(present[subject][place]), taken)
            if all(worker.process.exitcode == 0 for worker in started):
                known["complete"] += [task_title(task) for task in present[subject]]
    finally:
        for worker in [one for started in workers.values() for one in started]:
            end_process(worker.process)
        file.write_text(json.dumps(known))
    seconds: dict[str, float] = known["seconds"]
    return seconds


def _sent(pipe: Connection) -> Iterator[Any]:
    """Yield what lies in a pipe."""
    with contextlib.suppress(EOFError):
        while pipe.poll():
            yield pipe.recv()


def compile_share(
    pipe: Connection, subject: Subject, tasks: Sequence[TimingTask], device: torch.device, share: int, shares: int
) -> None:
    """Run a share of the tasks twice, or, of a package that autotunes, all with a share of the configurations.

    Send the place of each task with the seconds that its first run took beyond its second one.
    """
    torch.set_num_threads(1)
    import_peer(subject, tasks, device)
    if subject in PACKAGES:
        peers.keep_share(subject, share, shares)
    for case, name in tasks if subject in PACKAGES else _share(tasks, share, shares):
        for problem in _compiled_sizes(case.problem, name, subject):
            if subject in PACKAGES:
                peers.forget_choices(subject)
            with contextlib.suppress(Exception):  # what cannot run says so when it is measured
                run = peers.contender_run(problem, name, device)
                inputs = peers.stored_inputs(problem, name, problem.inputs(device))
                taken = [_seconds_of_passes(run, inputs, device) for _ in range(2)]
                if subject not in PACKAGES:
                    pipe.send((tasks.index((case, name)), max(0.0, taken[0] - taken[1])))
        measure.free_memory(device)


def _compiled_sizes(problem: Any, name: str, subject: Subject) -> list[Any]:
    """Return the problems that compile the kernels of a contender, in as little memory as that takes.

    One sequence may compile to other code. PyTorch compiles for every number of sequences, and so do some kernels of
    packages, whose code does not depend on the number of tokens; with few of these, many processes fit a device.
    """
    if subject in PACKAGES:
        return [problem.few(), problem.varied({"t": min(problem.t, PEER_TOKENS)})]
    return [problem if peers.subject_of(problem, name) == "compiled" else problem.few()]


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


def import_peer(subject: Subject, tasks: Sequence[TimingTask], device: torch.device) -> None:
    """Import a package that has contenders, and shorten its autotuning; nothing for other owners."""
    if subject in PACKAGES:
        for case, name in tasks:
            with contextlib.suppress(Exception):  # what cannot be imported says so when it is measured
                peers.contender_run(case.problem, name, device)
        peers.shorten_autotuning(subject)
