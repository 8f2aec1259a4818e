"""Commands in processes that can be killed, without an import of torch for each: one server imports it and forks.

With the library of `intercept.c`, the file operations of a command below its folder can also be counted, recorded, and
made to fail.
"""

import ctypes
import errno
import gc
import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]


LOOK, OPEN, LIST, READ, WRITE, MAKE, NAME, SYNC, CLOSE = (1 << i for i in range(9))
"""Kinds of file operations, as in `intercept.c`; MAKE includes the opening of a file that is made or cut."""
EVERY = 511
ONCE, FOR_GOOD, SHORT, KILL = 1, 2, 3, 4
"""Manners of a fault."""


class Fault(NamedTuple):
    """A fault that hits one file operation of a command."""

    kinds: int
    """Operations that can be hit."""
    manner: int = ONCE
    error: int = 0
    at: int = 0
    """Number of the operation that is hit, from 1; 0 only counts."""
    record: str = ""
    """File for a record of all operations."""


FAULTS = {
    "kill": Fault(MAKE | WRITE | NAME, KILL),
    "ENOSPC": Fault(MAKE | WRITE | SYNC, FOR_GOOD, errno.ENOSPC),
    "EIO": Fault(EVERY, ONCE, errno.EIO),
    "EINTR": Fault(OPEN | READ | WRITE | SYNC, ONCE, errno.EINTR),
    "EACCES": Fault(LOOK | OPEN | LIST | MAKE | NAME, ONCE, errno.EACCES),
    "EMFILE": Fault(OPEN, ONCE, errno.EMFILE),
    "ESTALE": Fault(EVERY, ONCE, errno.ESTALE),
    "short": Fault(READ | WRITE, SHORT),
}
"""Faults by name. A process that is killed leaves the disk as its last change left it, so that only changes count."""


class Ended(NamedTuple):
    """The end of a command."""

    status: int
    """Exit status; the negative number of the signal that killed the command, if one did."""
    out: str
    err: str
    seconds: float
    operations: int = 0
    """Number of file operations that the fault could have hit."""
    hit: str = ""
    """The operation that the fault hit."""


PRINTED = ("out", "err", "hit")
"""Files in the folder of a command: what it prints, and what its fault hit."""


def compile_library(folder: Path) -> Path:
    """Compile `intercept.c` in a folder and return the library; raises CalledProcessError."""
    library = folder / "intercept.so"
    source = Path(__file__).with_name("intercept.c")
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    return library


class ForkServer:
    """A process that forks commands, one after the other; `library` is the library of `intercept.c`, for faults."""

    def __init__(self, library: Path | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.harness.fork_server"],
            cwd=ROOT,
            env={**os.environ, **({"LD_PRELOAD": str(library)} if library else {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self,
        folder: Path,
        arguments: Sequence[str],
        environment: Mapping[str, str] | None = None,
        after: float | str | None = None,
        number: int = signal.SIGKILL,
        fault: Fault | None = None,
    ) -> Ended:
        """Run a command in a folder; send it a signal after so many seconds, or once a file matches the pattern."""
        asked: dict[str, Any] = {"folder": str(folder.resolve()), "arguments": list(arguments), "after": after}
        asked |= {"environment": dict(environment or {}), "signal": int(number)}
        asked["fault"] = fault
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        status, seconds = json.loads(self.process.stdout.readline())
        out, err, hit = ((folder / name).read_text() if (folder / name).exists() else "" for name in PRINTED)
        operations, _, what = hit.partition(" ")
        return Ended(status, out, err, seconds, int(operations or 0), what)

    def close(self) -> None:
        """End the server."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def serve() -> None:
    """Fork a command for each line of standard input, and print how it ended."""
    import matplotlib.backends.backend_svg  # noqa: F401 - as the next two, commands import it when they first need it
    import scipy.special
    import scipy.stats  # noqa: F401
    import torch

    import icl_bench

    for module in pkgutil.walk_packages(icl_bench.__path__, "icl_bench."):
        if "triton" not in module.name and not module.name.endswith((".ray", ".__main__")):
            importlib.import_module(module.name)
    torch.set_num_threads(1)
    gc.freeze()  # a collection in a fork would copy the memory of all that is imported
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if not child:
            run_command(asked)
        send_signal(child, asked)
        started = time.perf_counter()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        sys.stdout.write(json.dumps([status, time.perf_counter() - started]) + "\n")
        sys.stdout.flush()


def run_command(asked: Mapping[str, Any]) -> None:
    """Run a command in this process, and end the process."""
    from icl_bench import cli

    os.chdir(asked["folder"])
    os.environ.update(asked["environment"])
    for name in PRINTED:
        Path(name).unlink(missing_ok=True)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = ["icl-bench", *asked["arguments"]]
    if asked["fault"]:
        arm(Fault(*asked["fault"]), asked["folder"])
    status: Any = 1
    try:
        cli.main()
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        if asked["fault"]:
            disarm()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def arm(fault: Fault, folder: str) -> None:
    """Plant a fault in the file operations of this process below a folder."""
    library = ctypes.CDLL(None)
    library.intercept_arm.argtypes = [ctypes.c_char_p, *[ctypes.c_int] * 3, ctypes.c_long, ctypes.c_char_p]
    library.intercept_arm(folder.encode(), fault.kinds, fault.manner, fault.error, fault.at, fault.record.encode())


def disarm() -> None:
    """End all faults, and write which operation was hit."""
    library = ctypes.CDLL(None)
    library.intercept_disarm.restype, library.intercept_struck.restype = ctypes.c_long, ctypes.c_char_p
    passed = library.intercept_disarm()
    Path("hit").write_text(f"{passed} {library.intercept_struck().decode()}")


def send_signal(child: int, asked: Mapping[str, Any]) -> None:
    """Send the signal that was asked for, at its moment."""
    after = asked["after"]
    if after is None:
        return
    if isinstance(after, str):
        while not any(Path(asked["folder"]).glob(after)):
            time.sleep(0.002)
    else:
        time.sleep(after)
    os.kill(child, asked["signal"])


if __name__ == "__main__":
    serve()
