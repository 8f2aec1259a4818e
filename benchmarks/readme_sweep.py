"""Seconds of the sweep behind the README figure of zoology: its models here, four rates each, 32 epochs of the mix.

    python benchmarks/readme_sweep.py FOLDER [--epochs 32] [--only delta,gla] [--engine inline] [--device cuda]
        [--updates 707]
    python benchmarks/readme_sweep.py --estimate [--only delta,gla] [--device cuda]

The models are those of `original_mqar_configs.py` (zoology d88d6f5): 55 with four learning rates each, of which 49
exist here; the six others are test-time training by minibatches of 32 tokens, which take 16 here. A published run has
32 epochs of 707 updates and is validated after each. The store in FOLDER keeps finished runs, so that the sweep can be
cut into parts by `--only`, words of which one is in the name. The time of a sweep with fewer epochs has a part that
does not grow with them: two numbers of epochs tell both.

`--estimate` trains nothing to its end: the four runs of each model take some hundred steps, on all lengths, and the
times of a step are multiplied by the steps of 32 epochs and added up. That leaves out validations and tests, the
building of fleets, and what fleets gain beside each other.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from icl_bench.harness.engines.base import make_engine
from icl_bench.harness.engines.executor import Executor
from icl_bench.harness.environment import device_name, git_revision, pick_device
from icl_bench.harness.resolve import Request, expand_request
from icl_bench.harness.training.graphs import WARM_STEPS
from icl_bench.harness.training.trainer import Machine, Trainer
from icl_bench.isolation import isolating
from icl_bench.runs.events import SilentReporter
from icl_bench.runs.record import RunRecord
from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store import Store

RATES = (1e-3, 3.16e-3, 1e-2, 3.16e-2)
UPDATES, EPOCHS = 707, 32
"""Updates of an epoch, with batches of 256 examples, and epochs of a published run."""
REFILLS = 2
"""Batch queues of each length that an estimate times."""
WIDE = (64, 128, 256)
MODELS: list[tuple[str, tuple[int, ...]]] = [
    ("gated-conv+softmax:heads=1,conv=0", (64, 128)),
    *((f"gated-conv+based:heads=1,d_key={width}", (48, 64, 128)) for width in (8, 16, 24)),
    *((f"mamba-2:d_key={width}", WIDE) for width in (8, 16, 24)),
    *((f"gated-conv+window:w={2**power},heads=1,conv=0", (128,)) for power in range(3, 11)),
    ("gated-conv+delta-net:heads=2,conv=4", WIDE),
    *((f"gated-conv+rwkv-7:heads={width // 64},value_residual=false", (width,)) for width in WIDE),
    ("gated-conv+gla:heads=2,conv=0", WIDE),
    ("gated-conv+gated-delta-net:heads=2,conv=4,output_gate=false", WIDE),
    ("gated-conv+nsa:heads=2,w=16,block=8,selected=4", WIDE),
    ("gated-conv+ttt-linear:heads=2", WIDE),
    ("gated-conv+ttt-mlp:heads=2", WIDE),
]
"""Architectures, and the widths of their models."""


def specs(epochs: int, updates: int, words: list[str]) -> list[RunSpec]:
    """Return the runs of the models whose name contains one of the words, or of all models without words."""
    runs: list[RunSpec] = []
    for arch, widths in MODELS:
        if words and not any(word in arch for word in words):
            continue
        for width in widths:
            settings = [f"model.d_model={width}", f"train.steps={epochs * updates}", f"evaluation.points={epochs}"]
            task = "assoc-recall:variant=zoology"
            runs += expand_request(Request(task, [arch], "zoology", RATES, precision="bfloat16", settings=settings))
    return runs


def show(records: list[RunRecord]) -> None:
    """Print a line for each fleet: seconds from its start to its end, examples a second, the best accuracy."""
    by_model: dict[tuple[str, int], list[RunRecord]] = {}
    for record in records:
        by_model.setdefault((record.result.arch, record.spec["model"]["d_model"]), []).append(record)
    for (arch, width), own in by_model.items():
        failed = sum(record.result.status != "ok" for record in own)
        seconds, speed = own[0].result.seconds, own[0].result.examples_per_second
        best = max(record.result.accuracy for record in own)
        print(f"{arch}\t{width}\t{seconds:.1f} s\t{speed:,.0f} examples/s\tbest {best:.3f}\t{failed} failed")


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
        take_steps(trainer, cell, queue.steps)  # captures the graphs of a refill and of a step
        timed = REFILLS * queue.steps
        total += trainer.cell_of_step.count(cell) * take_steps(trainer, cell, timed) / timed
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
        label, width = fleet[0].arch_label, fleet[0].model.d_model
        print(f"{label}\t{width}\t{own:.1f} s\t{done * len(RATES)} of {len(runs)} runs {total:.0f} s", flush=True)


def main() -> None:
    """Train what the store lacks, and print the seconds, or estimate them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--estimate", action="store_true")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--updates", type=int, default=UPDATES, help="of an epoch; few to compile kernels")
    parser.add_argument("--only", default="")
    parser.add_argument("--engine", default="inline")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    machine = Machine(pick_device(options.device))
    runs = specs(options.epochs, options.updates, [word for word in options.only.split(",") if word])
    if options.estimate:
        estimate(runs, machine)
        print(f"an estimate for {options.epochs} epochs; {device_name(machine.device)}, {git_revision()}", flush=True)
        return
    if options.folder is None:
        parser.error("a sweep needs a FOLDER for its store")
    store = Store(options.folder)
    there = sum(store.has(spec.id) for spec in runs)
    engine = make_engine(options.engine, machine)
    began = time.perf_counter()
    try:
        with isolating():  # as commands do, which then compile the kernels of a fleet in processes
            records = Executor(store, engine, len(RATES), SilentReporter(), machine).finish(runs)
    finally:
        engine.close()
    seconds = time.perf_counter() - began
    show(records)
    done = f"{len(runs)} runs, {there} of them there before, {options.epochs} of {EPOCHS} epochs"
    print(f"{done}: {seconds:.1f} s; {device_name(machine.device)}, {git_revision()}", flush=True)


if __name__ == "__main__":
    main()
