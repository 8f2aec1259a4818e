"""Time commands on a store of many runs, and what the store adds to a tiny run; measure the memory of each.

    python benchmarks/store.py FOLDER --runs 100000
    python benchmarks/store.py FOLDER --runs 100000 --only index list
    python benchmarks/store.py FOLDER --tiny 500

The runs are invented: 8 architectures at 5 sizes, 9 learning rates, and as many seeds as needed. They are written
without waiting for the disk, half of them to each of two stores, whose merge is the third. A store that is there is
used unchanged. `--tiny` trains runs of one step, fleets of one, and measures what their records add to each of
them (manifest, metrics, commit), and the peak of memory after a fifth of the runs and after all.

Each row has the wall time, the processor time, the peak of memory (RSS) and the load of the machine at its end. Linux
counts the memory of the process that starts a command as a peak of the command, so that smaller peaks do not show.
"""

import argparse
import itertools
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from icl_bench.harness.resolve import Request, expand_request
from icl_bench.harness.training import attempt as training
from icl_bench.harness.training.fleet import run_fleet
from icl_bench.harness.training.trainer import Machine
from icl_bench.runs.record import CellScore, Manifest, MetricPoint, RunResult, StateReport, WorkReport
from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store import Store
from icl_bench.runs.store.attempt import RunWriter, check_field, run_folder
from icl_bench.runs.store.files import sha256
from icl_bench.runs.store.parsing import text_of

ARCHS = ("power:p=2", "power:p=4", "linear", "softmax", "window", "gated-conv", "linear:feature_map=elu", "power:p=3")
WIDTHS = (16, 32, 64, 128, 256)
RATES = tuple(1e-4 * 10 ** (i / 3) for i in range(9))
LOADS = (4, 8, 16, 32, 64)


TASK = "assoc-recall:length=16,pairs=[2|4],vocab=64"
TINY = ("train.steps=1", "train.batch=2", "evaluation.examples=2", "evaluation.validation=2", "evaluation.points=1")


def main() -> None:
    """Write the stores that do not exist, then time the commands."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--only", nargs="*", help="names of rows, such as index, list, export")
    parser.add_argument("--tiny", type=int, default=0, help="train this many runs of one step instead")
    asked = parser.parse_args()
    if asked.tiny:
        time_tiny(asked.folder, asked.tiny)
        return
    halves = [asked.folder / name for name in ("half-a", "half-b")]
    for half, offset in zip(halves, (0, 1), strict=True):
        if not (half / "runs").is_dir():
            for spec in itertools.islice(specs(), offset, asked.runs, 2):
                write_run(half, spec)
    wanted = set(asked.only or [name for name, *_ in commands(asked.folder)])
    for name, store, *arguments in commands(asked.folder):
        if name in wanted:
            if name == "index":
                (asked.folder / store / "index.sqlite").unlink(missing_ok=True)
            command(name, [*arguments], asked.folder)


def commands(folder: Path) -> Iterator[tuple[str, ...]]:
    """Yield the name of each row, the store that it is about, and its command; the merge comes first."""
    first = next(specs())
    whole = ("--store", "whole")
    yield "merge", "whole", "merge", "half-a", "half-b", *whole
    yield "merge again", "whole", "merge", "half-a", "half-b", *whole
    yield "index", "whole", "runs", "list", "--status", "error", *whole
    yield "list", "whole", "runs", "list", *whole
    yield "list as JSON", "whole", "runs", "list", "--json", *whole
    yield "report", "whole", "report", "whole", "-o", "report.md"
    yield "page", "whole", "report", "whole", "-o", "report.html"
    yield "export", "whole", "runs", "export", "runs.csv", *whole
    yield "verify", "whole", "runs", "verify", *whole
    own = ("--set", f"model.d_model={first.model.d_model}", "--lr", repr(first.train.lr))
    yield "run", "whole", "run", "assoc-recall", "--arch", ARCHS[0], *own, *whole


def command(name: str, arguments: list[str], folder: Path) -> None:
    """Run one command in a process of its own, and print its times and its peak of memory."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "icl_bench", *arguments], cwd=folder, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    row(name, wall, used.ru_utime + used.ru_stime, used.ru_maxrss, f"exit {os.waitstatus_to_exitcode(status)}")


def row(name: str, wall: float, processor: float, peak: int, note: str = "") -> None:
    """Print one row; `peak` is in KiB."""
    load = os.getloadavg()[0]
    print(
        f"{name:<14} {wall:8.2f} s  {processor:8.2f} s CPU  {peak / 1024:6.0f} MiB  load {load:.1f}  {note}", flush=True
    )


def time_tiny(folder: Path, count: int) -> None:
    """Train runs of one step, one after another, and print what the store adds to each of them."""
    spent = [0.0]
    for owner, name in ((Store, "begin"), (RunWriter, "log"), (training, "commit_fleet"), (training, "make_manifest")):
        setattr(owner, name, timed(getattr(owner, name), spent))
    (base,) = expand_request(Request(TASK, ["linear"], settings=("model.d_model=8", "model.layers=1", *TINY)))
    store, machine, started = Store(folder), Machine(torch.device("cpu")), time.perf_counter()
    store.check_writable()
    for seed in range(count):
        run_fleet([base.model_copy(update={"seed": seed, "data_seed": seed})], store, machine, lambda progress: None)
        if seed + 1 in (count // 5, count):
            used = resource.getrusage(resource.RUSAGE_SELF)
            per_run = spent[0] / (seed + 1) * 1e3
            row(f"{seed + 1} runs", time.perf_counter() - started, used.ru_utime + used.ru_stime, used.ru_maxrss,
                f"{per_run:.1f} ms of the store in a run")  # fmt: skip


def timed(method, spent: list[float]):
    """Return a method that adds its wall time to `spent`."""

    def call(*arguments):
        started = time.perf_counter()
        try:
            return method(*arguments)
        finally:
            spent[0] += time.perf_counter() - started

    return call


def specs():
    """Yield specifications without end; runs of even seeds have one learning rate, runs of odd seeds all of them."""
    base = {
        (arch, width): expand_request(Request("assoc-recall", [arch], settings=[f"model.d_model={width}"]))[0]
        for arch, width in itertools.product(ARCHS, WIDTHS)
    }
    for seed in itertools.count():
        for (arch, width), rate in itertools.product(base, RATES if seed % 2 else RATES[4:5]):
            spec = base[arch, width]
            yield spec.model_copy(
                update={"seed": seed, "data_seed": seed, "train": spec.train.model_copy(update={"lr": rate})}
            )


def write_run(root: Path, spec: RunSpec) -> None:
    """Write one run as the store does, without waiting for the disk."""
    folder = run_folder(root, spec.id).path
    folder.mkdir(parents=True)
    files = {"spec.json": text_of(spec), "manifest.json": text_of(MANIFEST)}
    best = accuracy_of(spec, LOADS[0])
    points = [metric(step, best * step / 300) for step in range(30, 301, 30)]
    files["metrics.jsonl"] = b"".join(text_of(point) for point in points)
    blank = outcome(spec).model_copy(update={"files": {name: sha256(data) for name, data in files.items()}})
    check = sha256(text_of(blank))
    files["result.json"] = text_of(blank).replace(check_field(""), check_field(check))
    for name, data in files.items():
        (folder / name).write_bytes(data)


def accuracy_of(spec: RunSpec, load: int) -> float:
    """Return an invented accuracy that falls with load and grows with width."""
    off = abs(math.log10(spec.train.lr / 2e-3))
    noise = (int(spec.id, 16) % 1000 - 500) / 1e4
    return min(1.0, max(0.01, 1 / (1 + load / spec.model.d_model) - 0.2 * off + noise))


def metric(step: int, accuracy: float) -> MetricPoint:
    """Return one validation."""
    cells = {f"pairs={load}": accuracy for load in LOADS}
    return MetricPoint(step=step, train_loss=1.0, train_accuracy=accuracy, accuracy=accuracy, by_cell=cells)


def outcome(spec: RunSpec) -> RunResult:
    """Return a result with a score in every cell."""
    cells = tuple(
        CellScore.model_validate(
            {name: None for name, field in CellScore.model_fields.items() if field.is_required()}
            | {"label": f"pairs={load}", "load": load, "length": 64, "scored": load}
            | {
                "accuracy": accuracy_of(spec, load),
                "exact_match": 0.1,
                "loss": 1.0,
                "floor": 0.02,
                "floor_solver": "any-value",
                "state_bits": 100.0,
            }
            | {"groups": {}}
        )
        for load in LOADS
    )
    width = spec.model.d_model
    return RunResult(
        id=spec.id, digest=spec.digest, task=spec.task.label, arch=spec.arch_label, load_name="pairs", seed=spec.seed,
        lr=spec.train.lr, status="ok", params=width * 1000, work=WorkReport(weights=1e4, state=1e3), steps=300,
        state=StateReport(elements=width * width, bytes=4 * width * width, length=64), seconds=1.0,
        examples_per_second=1e4, cells=cells, files={},
    )  # fmt: skip


MANIFEST = Manifest(
    versions={"torch": "2"}, device="made up", threads=1, host="none", revision=None, impl="auto", fleet_size=1,
    command="benchmarks/store.py", started="2026-01-01T00:00:00+00:00",
)  # fmt: skip

if __name__ == "__main__":
    main()
