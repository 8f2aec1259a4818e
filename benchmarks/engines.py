"""Measure the cost of an engine, and whether its results survive workers that are killed.

    python benchmarks/engines.py [--engine local:workers=2] [--runs 16] [--steps 200] [--kill-every 1]
                                 [--kill-for 60]

The same runs are carried out by the engine and in this process, both with one thread, and the two stores are compared
record by record, without times and machine names. With --kill-every, a worker chosen at random receives SIGKILL at this
interval. Printed are: the start time of the workers; the shares of the workers' time, from ready to the last result,
inside fleets, between fleets and idle (mostly at the end, when fewer fleets than workers are left); the number of
workers killed, and of runs given up because three workers were killed while they ran them.
"""

import argparse
import json
import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import torch
from rich.console import Console

from icl_bench.commands.progress import LineReporter
from icl_bench.harness.engines.base import make_engine
from icl_bench.harness.engines.executor import Executor
from icl_bench.harness.engines.inline import InlineEngine
from icl_bench.harness.engines.supervisor import Supervisor
from icl_bench.harness.resolve import Request, expand_request
from icl_bench.harness.training.trainer import Machine
from icl_bench.runs.record import RunRecord
from icl_bench.runs.store import Store

TASK = "assoc-recall:length=16,pairs=[2|4],vocab=64"
SMALL = (
    "model.d_model=16",
    "train.batch=8",
    "evaluation.examples=16",
    "evaluation.validation=8",
    "evaluation.points=2",
)


def main() -> None:
    """Run with the engine and in this process, compare and print."""
    options = parse()
    torch.set_num_threads(1)
    request = Request(TASK, ["linear"], seeds=range(options.runs), settings=(*SMALL, f"train.steps={options.steps}"))
    specs, machine = expand_request(request), Machine(torch.device("cpu"))
    engine = make_engine(options.engine, machine)
    assert isinstance(engine, Supervisor)
    with tempfile.TemporaryDirectory() as folder:
        store, killer = Store(Path(folder) / "engine"), Killer(Path(folder) / "engine", options)
        began = time.perf_counter()
        killer.start()
        records = Executor(store, engine, 1, LineReporter(Console(quiet=True))).finish(specs)
        seconds = time.perf_counter() - began
        killer.over.set()
        killer.join()
        engine.close()
        alone = Executor(
            Store(Path(folder) / "alone"), InlineEngine(machine), 1, LineReporter(Console(quiet=True))
        ).finish(specs)
        print_outcome(engine, records, alone, seconds, killer.killed)
        assert sorted(store.ids()) == sorted(spec.id for spec in specs), "runs lost or doubled"


def parse() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="local:workers=2", help="local or ray, with options")
    parser.add_argument("--runs", type=int, default=16)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--kill-every", type=float, help="seconds between kills; none to kill no worker")
    parser.add_argument("--kill-for", type=float, default=60.0, help="seconds of killing")
    return parser.parse_args()


class Killer(threading.Thread):
    """Kills a random worker at intervals."""

    def __init__(self, store: Path, options: argparse.Namespace) -> None:
        super().__init__(daemon=True)
        self.store, self.every, self.seconds = store, options.kill_every, options.kill_for
        self.over, self.killed, self.random = threading.Event(), 0, random.Random(0)

    def run(self) -> None:
        """Kill workers until the time is over or all runs are done."""
        if self.every is None:
            return
        while not self.victims():
            if self.over.wait(0.1):
                return
        until = time.monotonic() + self.seconds
        while time.monotonic() < until and not self.over.wait(self.every):
            victims = self.victims()
            if victims:
                os.kill(self.random.choice(victims), signal.SIGKILL)
                self.killed += 1

    def victims(self) -> list[int]:
        """Return the living processes that have an attempt at a run."""
        folder = self.store / "attempts"
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        processes = {int(name.split("-")[2]) for name in names if name[:5] != "fleet"}
        return sorted(process for process in processes - {os.getpid()} if Path(f"/proc/{process}").is_dir())


def comparable(record: RunRecord) -> str:
    """Return a record as text without times and machine names."""
    result = record.result.model_dump(mode="json", exclude={"seconds", "examples_per_second", "files", "check"})
    return json.dumps(
        [record.spec, result, [point.model_dump() for point in record.metrics]], sort_keys=True, default=str
    )


def print_outcome(
    engine: Supervisor, records: list[RunRecord], alone: list[RunRecord], seconds: float, killed: int
) -> None:
    """Print the figures."""
    usage = engine.usage
    given_up = [run for run in records if run.result.status == "crashed"]
    equal = sum(comparable(run) == comparable(own) for run, own in zip(records, alone, strict=True))
    idle = usage.present - usage.trips
    print(f"{len(records)} runs, {engine.size} workers, {seconds:.1f} s of wall time")
    print(
        f"start {usage.start:.2f} s; then {usage.present:.1f} worker-seconds: "
        f"{usage.busy / usage.present:.2%} in fleets that ended, "
        f"{(usage.trips - usage.busy) / usage.present:.2%} of overhead ({usage.overhead * 1e3:.1f} ms for a fleet of "
        f"{usage.busy / usage.fleets:.2f} s), {idle / usage.present:.2%} idle or in fleets that were killed"
    )
    print(f"{killed} workers killed, {usage.lost} of them lost, {len(given_up)} runs given up")
    classes = dict(Counter(run.result.status for run in records))
    print(f"{classes}; {equal} of {len(alone)} records equal those of one process")


if __name__ == "__main__":
    main()
