"""Seconds of a few fleets one at a time and several at once, and whether all their numbers are equal.

    python benchmarks/side_by_side.py FOLDER [--device cuda] [--at-once 8] [--steps 1000] [--seeds 10]

Fleets of five seeds of four mixers at 256 tokens, first for 30 steps, so that kernels are compiled.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load

from icl_bench.harness.engines.executor import Executor
from icl_bench.harness.engines.inline import InlineEngine
from icl_bench.harness.engines.side_by_side import SideBySide
from icl_bench.harness.environment import pick_device
from icl_bench.harness.resolve import Request, expand_request
from icl_bench.harness.training.trainer import Machine
from icl_bench.runs.events import SilentReporter
from icl_bench.runs.record import RunRecord
from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store import Store

TASK = "assoc-recall:length=256,pairs=[4|16|64],vocab=1056"
ARCHS = ("power:p=2,conv=2", "linear:conv=2", "window:conv=2", "softmax:conv=2")
SETTINGS = (
    "model.d_model=128", "train.batch=64", "evaluation.examples=128", "evaluation.validation=64", "evaluation.points=3",
)  # fmt: skip
MODEL = "model.safetensors"


def train(store: Store, machine: Machine, specs: list[RunSpec], at_once: int) -> list[RunRecord]:
    """Train the runs in fleets of five, and print the seconds and the gains of fleets at once."""
    engine = InlineEngine(machine, at_once)
    began = time.perf_counter()
    records = Executor(store, engine, 5, SilentReporter()).finish(specs)
    seconds = time.perf_counter() - began
    gains = engine.beside.occupancy.gains if isinstance(engine.beside, SideBySide) else {}
    shown = ", ".join(f"{n}: {sorted(round(one, 2) for one in found)}" for n, found in gains.items())
    print(
        f"{store.root.name}: {seconds:.1f} s for {len(specs)} runs, {at_once} at most; gains {shown or 'none'}",
        flush=True,
    )
    return records


def numbers(store: Store, record: RunRecord) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return the result of a run without times and digests, and its trained parameters."""
    result = record.result.model_dump(mode="json", exclude={"seconds", "examples_per_second", "files", "check"})
    return result, load(store.read_kept(record.result.id, MODEL))


def main() -> None:
    """Train twice and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder for the stores, which must not exist")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    machine = Machine(pick_device(options.device), keep=("model",))
    stores = {name: Store(options.folder / name) for name in ("first", "several", "one")}
    found = {}
    for name, at_once, steps in (
        ("first", 1, 30),
        ("several", options.at_once, options.steps),
        ("one", 1, options.steps),
    ):
        settings = [*SETTINGS, f"train.steps={steps}"]
        request = Request(TASK, ARCHS, seeds=range(options.seeds), precision="bfloat16", settings=settings)
        found[name] = train(stores[name], machine, expand_request(request), at_once)
    equal = 0
    for several, one in zip(found["several"], found["one"], strict=True):
        (result, tensors), (other, others) = numbers(stores["several"], several), numbers(stores["one"], one)
        equal += result == other and all(torch.equal(tensors[key], others[key]) for key in others)
    print(f"{equal} of {len(found['one'])} runs are equal in every number")


if __name__ == "__main__":
    main()
