"""Commands in processes that can be killed, without loading torch for each: one process loads it and forks."""

import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

SERVER = """
import glob, json, os, signal, sys, time, traceback
import torch
torch.set_num_threads(1)
import icl_bench.harness.engines.base, icl_bench.harness.training.fleet, icl_bench.commands.progress
from icl_bench import cli

for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if not child:
        os.chdir(asked["folder"])
        os.environ.update(asked["environment"])
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.argv = ["icl-bench", *asked["arguments"]]
        status = 1
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
    if asked["after"] is not None:
        if isinstance(asked["after"], str):
            while not glob.glob(os.path.join(asked["folder"], asked["after"])):
                time.sleep(0.002)
        else:
            time.sleep(asked["after"])
        os.kill(child, asked["signal"])
    started = time.perf_counter()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps([status, time.perf_counter() - started]), flush=True)
"""


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    """Exit status; the number of the signal, negative, where one killed it."""
    out: str
    err: str
    seconds: float


class Zygote:
    """A process that forks commands, one after the other."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(
        self,
        folder: Path,
        arguments: Sequence[str],
        environment: Mapping[str, str] | None = None,
        after: float | str | None = None,
        number: int = signal.SIGKILL,
    ) -> Ended:
        """Run a command in a folder; send it a signal after so many seconds, or when a file is there that fits."""
        asked: dict[str, Any] = {"folder": str(folder), "arguments": list(arguments), "after": after}
        self.ask({**asked, "environment": dict(environment or {}), "signal": int(number)})
        assert self.process.stdout is not None
        status, seconds = json.loads(self.process.stdout.readline())
        return Ended(status, (folder / "out").read_text(), (folder / "err").read_text(), seconds)

    def ask(self, asked: Mapping[str, Any]) -> None:
        """Send a command."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()

    def close(self) -> None:
        """Let the process end."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
