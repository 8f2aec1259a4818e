"""Train softmax on the smallest default cell of each task, within the task's budget.

    python benchmarks/trainability.py [--tasks markov-icl,regbench] [--seconds 240] [--device cuda] [--json FILE]

The class variable `budget` of a task gives steps, learning rate and parameters. A fleet trains at that rate, at half of
it and at twice of it, with two seeds each. The script prints a line for each finished task, doubtful tasks first, and
begins no task after `--seconds`. It rewrites the file with every line, so an interruption loses at most one task.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from icl_bench.harness.environment import device_name, git_revision, pick_device, versions
from icl_bench.harness.resolve import Request, expand_request
from icl_bench.harness.training.trainer import Machine, Trainer
from icl_bench.tasks import TASKS
from icl_bench.tasks.base import TrainingBudget

IN_DOUBT = (
    "set-disjointness", "markov-icl", "regbench", "variable-tracking", "state-tracking", "joint-recall",
    "selective-copy", "overwrite-recall", "flip-flop", "linear-regression", "vector-recall", "stacked-recall",
)  # fmt: skip
ENOUGH = 0.95
"""Accuracy, relative to the oracle, at which a cell counts as learned."""
SPREAD = (0.5, 1.0, 2.0)
"""Learning rates, relative to that of the budget."""
SEEDS = (0, 1)
POINTS = 20


def train(
    task: str, budget: TrainingBudget, arch: str, precision: str, device: torch.device, batch: int
) -> dict[str, Any]:
    """Train the fleet; return each member's test accuracy and the first step at which it had learned every cell."""
    rates = [float(f"{budget.lr * factor:.3g}") for factor in SPREAD]
    settings = [f"train.steps={budget.steps}", f"train.batch={batch}", "evaluation.validation=256"]
    specs = expand_request(Request(task, [arch], lrs=rates, seeds=SEEDS, precision=precision, settings=settings))
    trainer = Trainer(specs, Machine(device))
    started, reached = time.perf_counter(), [0] * len(specs)
    for step in range(1, budget.steps + 1):
        trainer.step()
        if step % max(1, budget.steps // POINTS) == 0:
            cells = list(trainer.validate().values())
            for member in range(len(specs)):
                if not reached[member] and min(cell[member] for cell in cells) >= ENOUGH:
                    reached[member] = step
    tested = trainer.test([trainer.working_model])
    return {
        "members": [{"lr": spec.train.lr, "seed": spec.seed} for spec in specs],
        "accuracy": [round(min(cell.accuracy for cell in cells), 4) for cells in tested],
        "reached_at": reached,
        "seconds": round(time.perf_counter() - started, 1),
    }


def line_of(row: dict[str, Any]) -> str:
    """Format a line of the table: a verdict, and the lowest accuracy over seeds at each of the three rates."""
    accuracy, rates = row["accuracy"], [member["lr"] for member in row["members"]]
    worst = {rate: min(a for a, own in zip(accuracy, rates, strict=True) if own == rate) for rate in rates}
    stated = worst[float(f"{row['lr']:.3g}")]
    verdict = "yes" if stated >= ENOUGH else "at another rate" if max(worst.values()) >= ENOUGH else "NO"
    shown = " ".join(f"{rate:g}:{value:.3f}" for rate, value in worst.items())
    steps = [step for step, own in zip(row["reached_at"], rates, strict=True) if own == float(f"{row['lr']:.3g}")]
    return f"{verdict:15} {row['task']:60} {row['steps']:5} steps, .95 at {steps}, {shown}, {row['seconds']} s"


def main() -> None:
    """Train the tasks named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", default="", help="names, separated by commas; all by default")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--arch", default="softmax")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device, started = pick_device(options.device), time.perf_counter()
    head = {"device": device_name(device), "versions": versions(), "revision": git_revision(), "arch": options.arch}
    names = options.tasks.split(",") if options.tasks else [*IN_DOUBT, *(n for n in TASKS if n not in IN_DOUBT)]
    rows: list[dict[str, Any]] = []
    for name in names:
        budget = TASKS[name].budget
        task = f"{name}:{budget.params}"
        if time.perf_counter() - started > options.seconds:
            print(f"{'-':15} {name}: no time left", flush=True)
            continue
        try:
            row = train(task, budget, options.arch, options.precision, device, options.batch)
        except RuntimeError as error:  # a kernel that fails on one task must not cost the others theirs
            print(f"{'FAILED':15} {name}: {str(error).splitlines()[0]}", flush=True)
            continue
        rows.append({"task": task, "steps": budget.steps, "lr": budget.lr, **row})
        print(line_of(rows[-1]), flush=True)
        if options.json:
            options.json.write_text(json.dumps({**head, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
