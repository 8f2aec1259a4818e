"""Time of the published runs: 180,000 examples an epoch in five cells, 32 epochs, seven test cells after each.

    python benchmarks/published_mix.py [--share 0.1] [--members 28] [--arch ...] [--device cuda] [--json FILE]

Seven learning rates by four seeds train as one fleet. A share of the steps of every cell is timed and multiplied out,
and one evaluation of all test cells with 1,000 examples each; with `--share 1` only the evaluation is multiplied.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from icl_bench.harness.environment import device_name, git_revision, pick_device, versions
from icl_bench.harness.resolve import Request, expand_request
from icl_bench.harness.training.evaluate import evaluate, evaluation_pieces
from icl_bench.harness.training.trainer import Machine, Trainer
from icl_bench.runs.spec import RunSpec

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
REFILLS = 4
"""Refills of the batch queue before the clock starts."""
EXAMPLES, EPOCHS = 1000, 32


def specs(arch: str, members: int) -> list[RunSpec]:
    """Return the published runs, by seed and rate."""
    runs = expand_request(Request("assoc-recall:variant=zoology", [arch], "zoology", RATES, range(4), "bfloat16"))
    return runs[:members]


def wait(device: torch.device) -> None:
    """Wait until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def take_steps(trainer: Trainer, cell: int, count: int) -> float:
    """Measure the seconds of `count` steps on one cell, taken as training takes them."""
    wait(trainer.device)
    started = time.perf_counter()
    for _ in range(count):
        if trainer.queues[cell].count_step():
            trainer.run_refill(cell)
        trainer.run_update(cell)
    wait(trainer.device)
    return time.perf_counter() - started


def cell_row(trainer: Trainer, cell: int, share: float) -> dict[str, Any]:
    """Time a fraction of the steps of a cell."""
    queue = trainer.queues[cell]
    steps = trainer.cell_of_step.count(cell)
    # Graphs are captured, and a refill has its own, before the clock starts.
    take_steps(trainer, cell, REFILLS * queue.steps)
    count = max(1, round(share * steps / queue.steps)) * queue.steps
    seconds = take_steps(trainer, cell, count)
    rate = count * queue.batch * len(trainer.specs) / seconds
    return {"cell": trainer.cells[cell].label, "steps": steps, "timed": count, "examples_per_second": round(rate),
            "seconds": round(seconds / count * steps, 2)}  # fmt: skip


def evaluation_seconds(trainer: Trainer) -> float:
    """Measure the seconds of one evaluation of all test cells, after one to warm up."""
    seconds = 0.0
    for _ in range(2):
        wait(trainer.device)
        started = time.perf_counter()
        for cell in trainer.task.eval_cells:
            stream = trainer.make_stream(cell.label, "test")
            evaluate(trainer.working_model, stream, evaluation_pieces(stream, EXAMPLES))
        wait(trainer.device)
        seconds = time.perf_counter() - started
    return seconds


def main() -> None:
    """Print a line for each cell and the sum."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--members", type=int, default=len(RATES) * 4)
    parser.add_argument("--arch", default="gated-conv+softmax:conv=0,heads=2")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = pick_device(options.device)
    runs = specs(options.arch, options.members)
    trainer = Trainer(runs, Machine(device))
    rows = []
    for cell in range(len(trainer.cells)):
        rows.append(cell_row(trainer, cell, options.share))
        print(*rows[-1].values(), sep="\t", flush=True)
    evaluation = evaluation_seconds(trainer)
    total = sum(row["seconds"] for row in rows) + EPOCHS * evaluation
    print(f"one evaluation {evaluation:.2f} s; {len(runs)} runs {total:.0f} s; {total / len(runs):.2f} s a run")
    if options.json:
        head = {"device": device_name(device), "versions": versions(), "revision": git_revision()}
        figures = {
            "members": len(runs),
            "share": options.share,
            "rows": rows,
            "evaluation_seconds": round(evaluation, 3),
        }
        figures |= {"seconds": round(total, 1), "seconds_a_run": round(total / len(runs), 3)}
        options.json.write_text(json.dumps({**head, "date": time.strftime("%Y-%m-%d"), **figures}, indent=1))


if __name__ == "__main__":
    main()
