"""Commands in processes that can be killed, without an import of torch for each: one server imports it and forks."""

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]


class Ended(NamedTuple):
    """The end of a command."""

    status: int
    """Exit status; the negative number of the signal that killed the command, if one did."""
    out: str
    err: str
    seconds: float


class ForkServer:
    """A process that forks commands, one after the other."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.harness.fork_server"],
            cwd=ROOT,
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
    ) -> Ended:
        """Run a command in a folder; send it a signal after so many seconds, or once a file matches the pattern."""
        asked: dict[str, Any] = {"folder": str(folder.resolve()), "arguments": list(arguments), "after": after}
        asked |= {"environment": dict(environment or {}), "signal": int(number)}
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        status, seconds = json.loads(self.process.stdout.readline())
        return Ended(status, (folder / "out").read_text(), (folder / "err").read_text(), seconds)

    def close(self) -> None:
        """End the server."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def serve() -> None:
    """Fork a command for each line of standard input, and print how it ended."""
    import torch

    import icl_bench.cli
    import icl_bench.commands.progress
    import icl_bench.harness.engines.base  # noqa: F401

    torch.set_num_threads(1)
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
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = ["icl-bench", *asked["arguments"]]
    status: Any = 1
    try:
        cli.main()
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


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
