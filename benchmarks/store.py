"""Time a store of many runs: building the index, a listing, a report.

    python benchmarks/store.py FOLDER --runs 100000

The runs are invented: 8 architectures at 5 sizes, 9 learning rates, and as many seeds as needed. They are written
without waiting for the disk. A folder that holds runs already is used unchanged.
"""

import argparse
import itertools
import math
import resource
import subprocess
import sys
import time
from pathlib import Path

from icl_bench.harness.resolve import Request, expand_request
from icl_bench.runs.record import CellScore, Manifest, MetricPoint, RunResult, StateReport, WorkReport
from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store.attempt import check_field, run_folder, text_of
from icl_bench.runs.store.files import sha256

ARCHS = ("power:p=2", "power:p=4", "linear", "softmax", "window", "gated-conv", "linear:feature_map=elu", "power:p=3")
WIDTHS = (16, 32, 64, 128, 256)
RATES = tuple(1e-4 * 10 ** (i / 3) for i in range(9))
LOADS = (4, 8, 16, 32, 64)


def main() -> None:
    """Write the store if it does not exist, then time the commands."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=100_000)
    asked = parser.parse_args()
    if not (asked.folder / "runs").is_dir():
        started = time.perf_counter()
        for spec in itertools.islice(specs(), asked.runs):
            write_run(asked.folder, spec)
        print(f"{asked.runs} runs written in {time.perf_counter() - started:.1f} s", flush=True)
    (asked.folder / "index.sqlite").unlink(missing_ok=True)
    command(asked.folder, "index from nothing, and a listing", "runs", "list", "--store", ".", "--status", "error")
    command(asked.folder, "listing", "runs", "list", "--store", ".", "--status", "error")
    command(asked.folder, "listing of all", "runs", "list", "--store", ".")
    command(asked.folder, "report", "report", ".", "-o", "report.md")
    (asked.folder / "index.sqlite").unlink()
    command(asked.folder, "report without an index", "report", ".", "-o", "report-again.md")


def command(folder: Path, what: str, *arguments: str) -> None:
    """Run one command, and print its wall time and processor time."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-m", "icl_bench", *arguments], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{what}: {time.perf_counter() - started:.2f} s, {processor:.2f} s of processor time", flush=True)


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
    folder = run_folder(root, spec.id)
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
