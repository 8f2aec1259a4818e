"""Measure what tests have no time for, and the speed at which tasks make examples; one line for each cell.

    python benchmarks/tasks.py oracles [--examples 10000]   scored positions at which the oracle is wrong
    python benchmarks/tasks.py floors [--examples 4000]     accuracy of the trivial solvers
    python benchmarks/tasks.py repeats [--draws 1000000]    test examples that also occur in training
    python benchmarks/tasks.py speed [--device cuda]        tokens a second, the best of several measurements

All take --tasks "SPEC SPEC" and --json FILE; measure the speed of a processor with OMP_NUM_THREADS=1.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from icl_bench.harness.environment import device_name, git_revision, pick_device, versions
from icl_bench.harness.resolve import make_task, task_component
from icl_bench.harness.training.batches import ExampleStream, Split
from icl_bench.harness.training.held_out import repeated_shares
from icl_bench.tasks import TASKS, Batch, Cell, Task
from icl_bench.tasks.base import measured_floors

CPU = torch.device("cpu")
AT_ONCE = 1000
TOKENS = {"cpu": 1 << 17, "cuda": 1 << 24}
"""Tokens of a timed batch: on a CPU fewer than training makes at once (`TOKENS_PER_REFILL`); enough to fill a GPU."""
SMALL = ("state-tracking:symbols=[16|32]", "state-tracking:group=s5,symbols=[4|16]", "set-disjointness", "regbench")
"""Tasks that have few different examples in their smallest cell."""


class CellResult(NamedTuple):
    """Results of one cell of a task."""

    task: str
    cell: str
    found: dict[str, Any]


def cells_of(task: Task) -> list[Cell]:
    """Return every cell, trained or evaluated, once."""
    return list({cell.label: cell for cell in (*task.train_cells, *task.eval_cells)}.values())


def examples(task: Task, cell: Cell, split: Split, count: int) -> Iterator[Batch]:
    """Yield the first examples of seed 0, in pieces."""
    feed = ExampleStream(task, cell, split, [0], CPU)
    for start in range(0, count, AT_ONCE):
        batch = feed.batch(torch.arange(start, min(start + AT_ONCE, count)))
        yield Batch(*(part[0] for part in batch))


def oracles(task: Task, cell: Cell, count: int) -> dict[str, Any]:
    """Count the scored positions and those at which the oracle is wrong; for vectors, average its error."""
    asked, wrong, error = 0, 0, 0.0
    for batch in examples(task, cell, "test", count):
        answers = task.oracle(batch.inputs, batch.positions, cell)
        asked += batch.positions.numel()
        error += float(task.oracle_grade(batch, cell).errors.sum())
        wrong += 0 if task.tolerance else int((task.hits(answers, batch, cell) < 1).sum())
    found: dict[str, Any] = {"scored": asked, "wrong": wrong}
    return {**found, "error": round(error / asked, 6)} if task.interface.squared_error else found


def floors(task: Task, cell: Cell, count: int) -> dict[str, Any]:
    """Measure the accuracy of every solver that learns nothing."""
    solvers = {**task.floors, **task.references}
    parts = [measured_floors(task, cell, batch, solvers) for batch in examples(task, cell, "test", count)]
    return {name: round(sum(part[name] for part in parts) / len(parts), 4) for name in parts[0]}


def repeats(task: Task, cell: Cell, draws: int, tested: int = 10_000) -> dict[str, Any]:
    """Count the test examples that also occur among the training draws, by canonical form."""
    test, train = (ExampleStream(task, cell, split, [0], CPU) for split in ("test", "train"))
    (share,) = repeated_shares(test, tested, train, draws)
    return {"draws": draws, "tested": tested, "repeated": round(share * tested)}


def speed(task: Task, cell: Cell, device: torch.device, seconds: float) -> dict[str, Any]:
    """Measure millions of tokens a second: the best of the measurements that fit in the time, at least three."""
    feed = ExampleStream(task, cell, "train", [0], device)
    index = torch.arange(max(1, TOKENS[device.type] // cell.length), device=device)
    feed.batch(index)
    best, begun, count = float("inf"), time.perf_counter(), 0
    while count < 3 or time.perf_counter() - begun < seconds:
        best, count = min(best, timed(feed, index)), count + 1
    return {"million_tokens_per_second": round(len(index) * cell.length / best / 1e6, 2)}


def timed(feed: ExampleStream, index: Tensor) -> float:
    """Time one batch, in seconds: processor time on a CPU; on a GPU it is replayed from a graph, as in training."""
    if index.device.type == "cpu":
        started = time.process_time()
        feed.batch(index)
        return time.process_time() - started
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        feed.batch(index)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    graph.replay()
    begin.record()
    for _ in range(5):
        graph.replay()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 5e3


def measure(options: argparse.Namespace, text: str) -> Iterator[CellResult]:
    """Yield the results of every cell of a task."""
    task = make_task(task_component(text))
    cells = cells_of(task)
    if options.what == "repeats":
        cells = [min(cells, key=lambda cell: (cell.load, cell.length)), max(cells, key=lambda cell: cell.load)]
    for cell in cells:
        if options.what == "oracles":
            yield CellResult(text, cell.label, oracles(task, cell, options.examples or 10_000))
        elif options.what == "floors":
            yield CellResult(text, cell.label, floors(task, cell, options.examples or 4_000))
        elif options.what == "repeats":
            yield CellResult(text, cell.label, repeats(task, cell, options.draws))
        else:
            yield CellResult(text, cell.label, speed(task, cell, pick_device(options.device), options.seconds))


def main() -> None:
    """Measure the tasks named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("oracles", "floors", "repeats", "speed"))
    parser.add_argument("--tasks", default="", help="specs, separated by spaces; all by default")
    parser.add_argument("--examples", type=int)
    parser.add_argument("--draws", type=int, default=1_000_000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    head = {"device": device_name(pick_device(options.device)), "versions": versions(), "revision": git_revision()}
    rows: list[CellResult] = []
    for text in options.tasks.split() or (SMALL if options.what == "repeats" else TASKS):
        for row in measure(options, text):
            rows.append(row)
            print(row.task, row.cell, *(f"{key}={value}" for key, value in row.found.items()), sep="\t", flush=True)
    if options.json:
        plain = [{"task": row.task, "cell": row.cell, **row.found} for row in rows]
        options.json.write_text(json.dumps({**head, "what": options.what, "rows": plain}, indent=1) + "\n")


if __name__ == "__main__":
    main()
