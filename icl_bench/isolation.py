"""Calls of code from outside the package in a process of their own, where it is not trusted to come back.

Commands isolate such calls; a program that hands its own classes to the package does not, and calls them where it is.
Processes are forked from a server that was started afresh and has imported torch but never used it, so that one starts
at once, and CUDA, which does not survive a fork, is first used inside it.
Here is also how many cores processes may use.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

from icl_bench.errors import IclBenchError, OutsideCodeError

T = TypeVar("T")

PRELOADED = "icl_bench.harness.preloaded"
"""Module that the server imports once: all that a worker needs."""
GPU_DRIVER = Path("/proc/driver/nvidia/version")
"""File of the driver of GPUs on Linux, where it is loaded."""
LONGEST_CALL = 120.0
"""Seconds in which an isolated call must come back: the import of a large package takes 30."""
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Processor time that a container may use, in microseconds, and the period that it is counted over."""
OWN_SCORE = Path("/proc/self/oom_score_adj")
"""File by which Linux is told which process to end first when memory runs out."""


class Isolation:
    """The number of `isolating` blocks that this process is in, and the answers that were given in them."""

    def __init__(self) -> None:
        self.depth = 0
        self.answers: dict[tuple[Callable[..., Any], tuple[Any, ...]], Any] = {}


CURRENT = Isolation()


@contextmanager
def isolating() -> Iterator[None]:
    """Call code from outside in processes of their own, inside the block."""
    CURRENT.depth += 1
    try:
        yield
    finally:
        CURRENT.depth -= 1
        CURRENT.answers.clear()


def is_isolating() -> bool:
    """Return True inside a block of `isolating`."""
    return CURRENT.depth > 0


def isolated(action: str, function: Callable[..., T], *arguments: Any, seconds: float | None = None) -> T:
    """Call a function of a module, which calls code from outside, and return its result.

    In a block of `isolating` the call has a process of its own, to which arguments and result are pickled, and
    LONGEST_CALL seconds. Raise OutsideCodeError, with a message that begins with `action`, if the process ends without
    an answer, or is ended because it takes too long; errors of the package are raised as they are.
    """
    if not is_isolating():
        return function(*arguments)
    limit = LONGEST_CALL if seconds is None else seconds
    ours, theirs = multiprocessing.Pipe()
    setting = (dict(os.environ), Path.cwd())
    process = start_method().Process(target=answer, args=(theirs, setting, function, arguments), daemon=True)
    with environment_variable("OMP_NUM_THREADS", "1"):  # so that libraries start no threads on import
        process.start()
    theirs.close()
    try:
        with ours:
            if not wait([ours, process.sentinel], limit):
                raise OutsideCodeError(f"{action}: it did not come back within {limit:g} s; mend it")
            if not ours.poll():  # a copy of the process may hold the other end open
                raise EOFError
            outcome = ours.recv()
    except EOFError:
        raise OutsideCodeError(f"{action}: {ending(process)}; mend it") from None
    finally:
        process.kill()
        process.join()
    if isinstance(outcome, IclBenchError):
        raise outcome
    result: T = outcome[0]
    return result


def isolated_once(action: str, function: Callable[..., T], *arguments: Any) -> T:
    """Call a function like `isolated`, once for equal arguments in a block of `isolating`."""
    if not is_isolating():
        return function(*arguments)
    key = (function, arguments)
    if key not in CURRENT.answers:
        CURRENT.answers[key] = isolated(action, function, *arguments)
    known: T = CURRENT.answers[key]
    return known


def answer(
    connection: Connection, setting: tuple[dict[str, str], Path], function: Callable[..., Any], arguments: Any
) -> None:
    """Send the result of a call, in a list, or the error of the package that it raised."""
    from icl_bench.registry import load_plugins

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    environment, folder = setting
    os.environ.update(environment)
    os.chdir(folder)
    prepare_for_outside_code()
    try:
        load_plugins()
        outcome: Any = [function(*arguments)]
    except IclBenchError as error:
        outcome = error
    connection.send(outcome)


def prepare_for_outside_code() -> None:
    """Send what this process prints to standard error, and let it end first where memory runs out."""
    sys.stdout.flush()
    os.dup2(2, 1)
    with contextlib.suppress(OSError):  # another system, or a container without the file
        OWN_SCORE.write_text("1000")


def ending(process: BaseProcess) -> str:
    """Describe the end of a process; one that is still there closed its connection, or stopped in it."""
    process.join(1.0)
    status = process.exitcode
    if status is None:
        return "it stopped talking"
    return f"ended by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"


@contextmanager
def environment_variable(name: str, value: str) -> Iterator[None]:
    """Set an environment variable inside the block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def usable_cores() -> int:
    """Return the number of processor cores that this process may use, within the quota of its container."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    quota, _, period = CPU_QUOTA.read_text().partition(" ") if CPU_QUOTA.is_file() else ("max", "", "")
    return cores if quota.strip() == "max" else max(1, min(cores, round(int(quota) / int(period))))


def start_method() -> ForkServerContext | SpawnContext:
    """Return the way to start processes: forked from a clean server on Linux, else spawned."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOADED])
    return context


def start_server() -> None:
    """Start the server from which workers are forked, so that it imports torch while this process does."""
    if start_method().get_start_method() == "forkserver":
        from multiprocessing import forkserver

        with environment_variable("OMP_NUM_THREADS", "1"):  # so that libraries start no threads on import
            forkserver.ensure_running()
