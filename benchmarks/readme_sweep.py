"""The sweep behind the README figure of zoology: its models here, four rates each, 32 epochs of the mix.

    python benchmarks/readme_sweep.py FOLDER [--rows FILE] [--all-updates] [--only delta,gla] [--epochs 32]
        [--updates 707] [--engine inline] [--device cuda]
    python benchmarks/readme_sweep.py --compile [--only delta,gla] [--device cuda]
    python benchmarks/readme_sweep.py --estimate [--only delta,gla] [--device cuda]

The models are those of `original_mqar_configs.py` (zoology d88d6f5): 55 with four learning rates each, of which 49
exist here; the six others are test-time training by minibatches of 32 tokens, which take 16 here. A published run makes
at most 32 epochs of 707 updates, is validated after each, and ends once its validation accuracy, the mean over examples
and so over the seven cells, is above .99 (`early_stopping_threshold` of `config.py` there); its schedule of rates is
that of 32 epochs all the same. So it is here, but for the validation examples, which are not those of the test;
`--all-updates` makes all 22,624 updates of every run.

The four runs of a model are one fleet, and several fleets train at once on a GPU. Models come in the order of
`MODELS`, those that take long last. The store in FOLDER keeps finished runs and checkpoints of unfinished ones, so that
a sweep that was cut goes on there. A row is printed for each model as it ends, and appended to FILE as JSON; models
with a row in FILE are left out, so that a sweep goes on without its store too. `--only` has words of which one is in
the name of an architecture.

`--compile` compiles the kernels of the models in processes, and trains nothing.

`--estimate` trains nothing to its end: the four runs of each model take some hundred steps, on all lengths, and the
times of a step are multiplied by the steps of 32 epochs and added up. That leaves out validations and tests, the
building of fleets, and what fleets gain beside each other.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from icl_bench.harness.engines.base import make_engine
from icl_bench.harness.engines.executor import Ask, Chain, Executor
from icl_bench.harness.environment import device_name, git_revision, pick_device
from icl_bench.harness.interruption import Interrupted, listen
from icl_bench.harness.resolve import Request, expand_request
from icl_bench.harness.training.ahead import compile_kernels, remember_kernels
from icl_bench.harness.training.graphs import WARM_STEPS
from icl_bench.harness.training.trainer import Machine, Trainer
from icl_bench.isolation import isolating
from icl_bench.runs.events import Reporter
from icl_bench.runs.record import RunResult
from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store import Store

RATES = (1e-3, 3.16e-3, 1e-2, 3.16e-2)
UPDATES, EPOCHS = 707, 32
"""Updates of an epoch, with batches of 256 examples, and most epochs of a published run."""
STOP_ABOVE = 0.99
"""Validation accuracy above which a published run ends."""
REFILLS = 2
"""Batch queues of each length that an estimate times."""
FEW_STEPS, LONGEST_SECONDS = 4, 1.0
"""Steps that it times instead where those of the queues would take longer than so many seconds."""
WIDTHS = (64, 128, 256)
WINDOWS = {8: 0.081, 16: 0.145, 32: 0.310, 64: 0.514, 128: 0.655, 256: 0.797, 512: 0.936, 1024: 1.0}
"""Published accuracies by reach of a window."""
BASED = {
    8: {48: 0.667, 64: 0.719, 128: 0.840},
    16: {48: 0.837, 64: 0.912, 128: 0.986},
    24: {48: 0.856, 64: 0.970, 128: 0.991},
}
"""Published accuracies of Based by width of keys and of the model."""


class Model(NamedTuple):
    """A model of the sweep."""

    arch: str
    width: int
    published: float | None = None
    """Best accuracy over rates, read off the README figure to .003; None where it was not read."""


def recurrent(width: int) -> list[str]:
    """Return the recurrent architectures of a width; values of Mamba-2 and all heads of RWKV-7 are 64 wide."""
    return [
        *(f"mamba-2:heads={width // 32},d_key={features}" for features in BASED),
        "gated-conv+delta-net:heads=2,conv=4",
        "gated-conv+gla:heads=2,conv=0",
        f"gated-conv+rwkv-7:heads={width // 64},value_residual=false",
        "gated-conv+gated-delta-net:heads=2,conv=4,output_gate=false",
    ]


SLOW = (
    "gated-conv+ttt-linear:heads=2",
    "gated-conv+nsa:heads=2,w=16,block=8,selected=4",
    "gated-conv+ttt-mlp:heads=2",
)
MODELS = [
    *(Model("gated-conv+softmax:heads=1,conv=0", width, 1.0) for width in (64, 128)),
    *(Model(f"gated-conv+window:w={reach},heads=1,conv=0", 128, own) for reach, own in WINDOWS.items()),
    *(Model(f"gated-conv+based:heads=1,d_key={key}", *own) for key, by in BASED.items() for own in by.items()),
    *(Model(arch, width) for width in WIDTHS for arch in recurrent(width)),
    *(Model(arch, width) for width in WIDTHS for arch in SLOW),
]
"""The models in the order in which they are trained: those that take long come last."""


def specs(epochs: int, updates: int, words: list[str], stop: bool = True) -> list[RunSpec]:
    """Return the runs of the models whose name contains one of the words, or of all models without words."""
    runs: list[RunSpec] = []
    for arch, width, _ in MODELS:
        if words and not any(word in arch for word in words):
            continue
        settings = [f"model.d_model={width}", f"train.steps={epochs * updates}", f"evaluation.points={epochs}"]
        settings += [f"train.stop_above={STOP_ABOVE}"] if stop else []
        task = "assoc-recall:variant=zoology"
        runs += expand_request(Request(task, [arch], "zoology", RATES, precision="bfloat16", settings=settings))
    return runs


class Rows(Reporter):
    """Print and write a row for each fleet as its runs are committed: one model, or a part of its rates."""

    def __init__(self, runs: Sequence[RunSpec], path: Path | None) -> None:
        self.specs, self.published = {spec.id: spec for spec in runs}, published()
        self.path, self.began = path, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.began

    def started(self, specs: Sequence[RunSpec]) -> None:
        """Print which model starts."""
        print(f"{self.seconds:.1f} s: {model_of(specs[0])} starts", flush=True)

    def finished(self, results: Sequence[RunResult]) -> None:
        """Print and write the row of a model."""
        model = model_of(self.specs[results[0].id])
        row = row_of(model, self.published[model], results)
        print(f"{self.seconds:.1f} s: {text_of(row)}", flush=True)
        if self.path is not None:
            machine = {"ended": round(self.seconds, 1), "revision": git_revision()}
            with self.path.open("a") as file:
                file.write(json.dumps({**row, **machine}) + "\n")


def model_of(spec: RunSpec) -> str:
    """Return the name of a model."""
    return f"{spec.arch_label} at {spec.model.d_model}"


def published() -> dict[str, float | None]:
    """Return the published accuracy of each model."""
    names = [model_of(fleet[0]) for fleet in fleets_of(specs(EPOCHS, UPDATES, []))]
    return {name: model.published for name, model in zip(names, MODELS, strict=True)}


def row_of(model: str, accuracy: float | None, results: Sequence[RunResult]) -> dict[str, Any]:
    """Return what is kept of the runs of a model: its seconds, and accuracies by rate and cell."""
    return {
        "model": model,
        "seconds": results[0].seconds,
        "examples_per_second": results[0].examples_per_second,
        "published": accuracy,
        "runs": [
            {
                "lr": result.lr,
                "status": result.status,
                "updates": result.steps,
                "accuracy": round(result.accuracy, 4),
                "by_cell": {cell.label: round(cell.accuracy, 4) for cell in result.cells},
            }
            for result in results
        ],
    }


def text_of(row: dict[str, Any]) -> str:
    """Return a row of the table as text."""
    runs = row["runs"]
    each = ", ".join(f"{run['lr']:g}: {run['accuracy']:.3f} ({run['updates']} {run['status']})" for run in runs)
    best = f"best {max(run['accuracy'] for run in runs):.3f}"
    beside = "" if row["published"] is None else f" (published {row['published']:.3f})"
    speed = f"{row['seconds']:.1f} s\t{row['examples_per_second']:,.0f} examples/s"
    return f"{row['model']}\t{speed}\t{best}{beside}\t{each}"


def without_rows(runs: list[RunSpec], path: Path | None) -> list[RunSpec]:
    """Return the runs of the models that have no row in a file."""
    if path is None or not path.exists():
        return runs
    there = {json.loads(line)["model"] for line in path.read_text().splitlines()}
    return [spec for spec in runs if model_of(spec) not in there]


def take_steps(trainer: Trainer, cell: int, count: int) -> float:
    """Measure the seconds of some steps on one cell, taken as training takes them."""
    started = time.perf_counter()
    for _ in range(count):
        if trainer.queues[cell].count_step():
            trainer.run_refill(cell)
        trainer.run_update(cell)
    trainer.take_means(count)  # which waits for the device
    return time.perf_counter() - started


def training_seconds(runs: list[RunSpec], machine: Machine) -> float:
    """Estimate the seconds in which the runs of a model train, by steps on each cell."""
    trainer, total = Trainer(runs, machine), 0.0
    for cell, queue in enumerate(trainer.queues):
        for _ in range(WARM_STEPS):
            trainer.run_refill(cell)
        take_steps(trainer, cell, WARM_STEPS + 1)  # captures the graphs of a refill and of a step
        each = take_steps(trainer, cell, FEW_STEPS) / FEW_STEPS
        timed = REFILLS * queue.steps
        if each * timed < LONGEST_SECONDS:
            each = take_steps(trainer, cell, timed) / timed
        total += trainer.cell_of_step.count(cell) * each
    return total


def fleets_of(runs: list[RunSpec]) -> Iterator[list[RunSpec]]:
    """Yield the runs of one model after the other, which `specs` put side by side."""
    for start in range(0, len(runs), len(RATES)):
        yield runs[start : start + len(RATES)]


def estimate(runs: list[RunSpec], machine: Machine) -> None:
    """Print the estimated seconds of training of each model, and their sum after each."""
    total = 0.0
    for done, fleet in enumerate(fleets_of(runs), start=1):
        own = training_seconds(fleet, machine)
        total += own
        if machine.device.type == "cuda":
            torch.cuda.empty_cache()
        print(f"{model_of(fleet[0])}\t{own:.1f} s\t{done * len(RATES)} of {len(runs)} runs {total:.0f} s", flush=True)


def compile_all(runs: list[RunSpec], machine: Machine) -> None:
    """Compile the kernels of each model, and note that they are there."""
    began = time.perf_counter()
    for fleet in fleets_of(runs):
        if compiled := compile_kernels(fleet, machine):
            remember_kernels(fleet, machine)
        outcome = "compiled" if compiled else "not compiled"
        print(f"{time.perf_counter() - began:.1f} s: {model_of(fleet[0])} {outcome}", flush=True)


def train(runs: list[RunSpec], store: Store, engine: str, machine: Machine, rows: Rows) -> None:
    """Train what the store lacks, one model after the other in their order, several at once."""

    def chain(fleet: list[RunSpec], rank: int) -> Chain:
        yield Ask(fleet, rank)

    running = make_engine(engine, machine)
    try:
        chains = [chain(fleet, rank) for rank, fleet in enumerate(fleets_of(runs))]
        Executor(store, running, len(RATES), rows, machine).follow(chains)
    finally:
        running.close()


def main() -> None:
    """Train what the store lacks, and print the seconds, or compile, or estimate them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--estimate", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--rows", type=Path, help="file to which a row for each model is appended")
    parser.add_argument("--all-updates", action="store_true", help="let no run stop early")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--updates", type=int, default=UPDATES, help="of an epoch")
    parser.add_argument("--only", default="")
    parser.add_argument("--engine", default="inline")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    machine = Machine(pick_device(options.device))
    place = f"{device_name(machine.device)}, {git_revision()}"
    words = [word for word in options.only.split(",") if word]
    runs = specs(options.epochs, options.updates, words, stop=not options.all_updates)
    runs = without_rows(runs, options.rows)
    listen()
    with isolating():  # as commands do, which then compile the kernels of a fleet in processes
        if options.compile:
            compile_all(runs, machine)
            return
        if options.estimate:
            estimate(runs, machine)
            print(f"an estimate for {options.epochs} epochs; {place}", flush=True)
            return
        if options.folder is None:
            parser.error("a sweep needs a FOLDER for its store")
        store = Store(options.folder)
        there = sum(store.has(spec.id) for spec in runs)
        rows = Rows(runs, options.rows)
        try:
            train(runs, store, options.engine, machine, rows)
        except Interrupted as signal_received:
            print(f"{rows.seconds:.1f} s: cut", flush=True)
            sys.exit(signal_received.status)
    done = f"{len(runs)} runs, {there} of them there before, {options.epochs} of {EPOCHS} epochs"
    print(f"{done}: {rows.seconds:.1f} s; {place}", flush=True)


if __name__ == "__main__":
    main()
