"""Does each task train? Softmax on the smallest default cell, with the budget that the task's docstring states.

    python benchmarks/trainability.py [--tasks markov-icl,regbench] [--seconds 240] [--device cuda] [--json FILE]

A docstring says "Budget: 1000 steps at 3e-3 on `task:parameters`". A fleet has the stated rate, half and twice of it,
on two seeds each. Prints a line for each task as it ends, those in doubt first, and stops before a task that would
begin after `--seconds`; the file is written anew with every line, so that an interruption loses one task at most.
"""

import argparse
import json
import re
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from icl_bench.harness.environment import device_name, git_revision, pick_device, versions
from icl_bench.harness.resolve import Request, expand
from icl_bench.harness.training.trainer import Trainer
from icl_bench.tasks import TASKS

STATED = re.compile(r"Budget: ([\d,]+) steps at ([\d.e-]+) on `([^`]+)`")
IN_DOUBT = (
    "set-disjointness", "markov-icl", "regbench", "variable-tracking", "state-tracking", "joint-recall",
    "selective-copy", "overwrite-recall", "flip-flop", "linear-regression", "vector-recall", "stacked-recall",
)  # fmt: skip
ENOUGH = 0.95
"""Of what the oracle reaches."""
SPREAD = (0.5, 1.0, 2.0)
"""Learning rates, relative to the stated one."""
SEEDS = (0, 1)
POINTS = 20


class Budget(NamedTuple):
    """What a docstring states."""

    task: str
    steps: int
    lr: float


def budget_of(name: str) -> Budget | None:
    """The budget that a task's docstring states; None where it states none."""
    found = STATED.search(" ".join(str(TASKS[name].__doc__).split()))
    return Budget(found[3], int(found[1].replace(",", "")), float(found[2])) if found else None


def train(budget: Budget, arch: str, precision: str, device: torch.device, batch: int) -> dict[str, Any]:
    """Train the fleet; accuracies on the test split by member, and the first step at which each was good enough."""
    rates = [float(f"{budget.lr * factor:.3g}") for factor in SPREAD]
    settings = [f"train.steps={budget.steps}", f"train.batch={batch}", "evaluation.validation=256"]
    specs = expand(Request(budget.task, [arch], lrs=rates, seeds=SEEDS, precision=precision, settings=settings))
    trainer = Trainer(specs, device, "auto")
    started, reached = time.perf_counter(), [0] * len(specs)
    for step in range(1, budget.steps + 1):
        trainer.step()
        if step % max(1, budget.steps // POINTS) == 0:
            cells = list(trainer.validate().values())
            for member in range(len(specs)):
                if not reached[member] and min(cell[member] for cell in cells) >= ENOUGH:
                    reached[member] = step
    tested = [outcome.accuracy for outcome in trainer.test()[0].values()]
    return {
        "members": [{"lr": spec.train.lr, "seed": spec.seed} for spec in specs],
        "accuracy": [round(min(cell[member] for cell in tested), 4) for member in range(len(specs))],
        "reached_at": reached,
        "seconds": round(time.perf_counter() - started, 1),
    }


def line_of(budget: Budget, row: dict[str, Any]) -> str:
    """A line of the table: the worst accuracy at the stated rate, and at the best of the three."""
    accuracy, rates = row["accuracy"], [member["lr"] for member in row["members"]]
    worst = {rate: min(a for a, own in zip(accuracy, rates, strict=True) if own == rate) for rate in rates}
    stated = worst[float(f"{budget.lr:.3g}")]
    verdict = "yes" if stated >= ENOUGH else "at another rate" if max(worst.values()) >= ENOUGH else "NO"
    shown = " ".join(f"{rate:g}:{value:.3f}" for rate, value in worst.items())
    steps = [step for step, own in zip(row["reached_at"], rates, strict=True) if own == float(f"{budget.lr:.3g}")]
    return f"{verdict:15} {budget.task:60} {budget.steps:5} steps, .95 at {steps}, {shown}, {row['seconds']} s"


def main() -> None:
    """Train every task asked for."""
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
        budget = budget_of(name) if name in TASKS else None
        if budget is None:
            print(f"{'-':15} {name}: states no budget", flush=True)
            continue
        if time.perf_counter() - started > options.seconds:
            print(f"{'-':15} {name}: no time left", flush=True)
            continue
        try:
            row = train(budget, options.arch, options.precision, device, options.batch)
        except RuntimeError as error:  # a kernel that fails on one task must not cost the others theirs
            print(f"{'FAILED':15} {name}: {str(error).splitlines()[0]}", flush=True)
            continue
        rows.append({"task": budget.task, "steps": budget.steps, "lr": budget.lr, **row})
        print(line_of(budget, row), flush=True)
        if options.json:
            options.json.write_text(json.dumps({**head, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
