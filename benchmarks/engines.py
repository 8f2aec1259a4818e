"""What an engine costs, and what it survives.

    python benchmarks/engines.py [--engine local|ray] [--workers 2] [--runs 16] [--steps 200]
                                 [--kill-every 1] [--kill-for 60]

Carries out the same runs with the engine and in this process, both with one thread, and compares the two stores record
by record, times and places aside. Meanwhile it may send SIGKILL to a worker, chosen at random, every so many seconds.
Printed: the start of the workers; the share of the workers' time, from ready to the last result, that was spent in
fleets, on the way of fleets from hand to hand, and idle, which is mostly the end, when fewer fleets than workers are
left; workers killed, and runs that were given up because three workers were killed over them.
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
from icl_bench.harness.engines.base import run_all
from icl_bench.harness.engines.choice import Choice
from icl_bench.harness.engines.choose import make_engine
from icl_bench.harness.engines.inline import InlineEngine
from icl_bench.harness.engines.local import LocalEngine
from icl_bench.harness.engines.ray import RayEngine
from icl_bench.harness.resolve import Request, expand
from icl_bench.harness.training.fleet import Machine
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
    """Run both ways, compare, print."""
    options = parse()
    torch.set_num_threads(1)
    request = Request(TASK, ["linear"], seeds=range(options.runs), settings=(*SMALL, f"train.steps={options.steps}"))
    specs, machine = expand(request), Machine(torch.device("cpu"))
    engine = make_engine(Choice(options.engine, options.workers), machine)
    assert isinstance(engine, LocalEngine | RayEngine)
    with tempfile.TemporaryDirectory() as folder:
        store, killer = Store(Path(folder) / "engine"), Killer(Path(folder) / "engine", options)
        began = time.perf_counter()
        killer.start()
        records = run_all(specs, store, engine, 1, LineReporter(Console(quiet=True)))
        seconds = time.perf_counter() - began
        killer.over.set()
        killer.join()
        engine.close()
        alone = run_all(
            specs, Store(Path(folder) / "alone"), InlineEngine(machine), 1, LineReporter(Console(quiet=True))
        )
        print_outcome(engine, records, alone, seconds, killer.killed)
        assert sorted(store.ids()) == sorted(spec.id for spec in specs), "runs lost or doubled"


def parse() -> argparse.Namespace:
    """Options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=["local", "ray"], default="local")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--runs", type=int, default=16)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--kill-every", type=float, help="seconds between kills; none to kill nobody")
    parser.add_argument("--kill-for", type=float, default=60.0, help="seconds of killing")
    return parser.parse_args()


class Killer(threading.Thread):
    """Kills a worker that has a run in hand, now and then."""

    def __init__(self, store: Path, options: argparse.Namespace) -> None:
        super().__init__(daemon=True)
        self.store, self.every, self.seconds = store, options.kill_every, options.kill_for
        self.over, self.killed, self.random = threading.Event(), 0, random.Random(0)

    def run(self) -> None:
        """Kill until time is up or the work is done."""
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
        """Processes with an attempt at a run that are there."""
        folder = self.store / "attempts"
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        processes = {int(name.split("-")[2]) for name in names if name[:5] != "fleet"}
        return sorted(process for process in processes - {os.getpid()} if Path(f"/proc/{process}").is_dir())


def comparable(record: RunRecord) -> str:
    """What must be equal of a record: all but times and places."""
    result = record.result.model_dump(mode="json", exclude={"seconds", "examples_per_second", "files", "check"})
    return json.dumps(
        [record.spec, result, [point.model_dump() for point in record.metrics]], sort_keys=True, default=str
    )


def print_outcome(
    engine: LocalEngine | RayEngine, records: list[RunRecord], alone: list[RunRecord], seconds: float, killed: int
) -> None:
    """The figures."""
    usage = engine.supervisor.usage
    given_up = [run for run in records if run.result.status == "crashed"]
    equal = sum(comparable(run) == comparable(own) for run, own in zip(records, alone, strict=True))
    idle = usage.present - usage.trips
    print(f"{len(records)} runs, {engine.supervisor.size} workers, {seconds:.1f} s of wall time")
    print(
        f"start {usage.start:.2f} s; then {usage.present:.1f} worker-seconds: "
        f"{usage.busy / usage.present:.2%} in fleets that ended, "
        f"{(usage.trips - usage.busy) / usage.present:.2%} on the way ({usage.overhead * 1e3:.1f} ms a fleet of "
        f"{usage.busy / usage.fleets:.2f} s), {idle / usage.present:.2%} idle or in fleets that were cut"
    )
    print(f"{killed} workers killed, {usage.lost} of them lost, {len(given_up)} runs given up")
    classes = dict(Counter(run.result.status for run in records))
    print(f"{classes}; {equal} of {len(alone)} records equal those of one process")


if __name__ == "__main__":
    main()
