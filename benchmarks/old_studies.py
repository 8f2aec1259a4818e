"""Compute the published studies of 2026-11-24 anew from their tables of runs: better floors, one family of tests.

    python benchmarks/old_studies.py [--studies docs/studies] [NAME ...]

For each study: K50 with the floors of its records and with those of the solvers known now, on the same test examples;
every pair of equal state by a rank test, adjusted by Holm's method over the study; and for several tasks the
interquartile means with both floors.
"""

import argparse
import csv
import itertools
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

from icl_bench.harness.resolve import make_task, task_component
from icl_bench.harness.training.batches import ExampleStream
from icl_bench.harness.training.held_out import floors_by_member
from icl_bench.reports.fits import capacity
from icl_bench.reports.statistics import aggregate, chance_corrected, holm, rank_test
from icl_bench.reports.text import format_load
from icl_bench.runs.rates import choose_rate, rate_score

NAMES = ("degree-fixed-width", "degree-matched-state", "power-vs-window", "suite", "zoology-figure")
EXAMPLES = {"zoology-figure": 1000}
"""Test examples of a cell, where they are not 512."""
STATE_TOLERANCE = 0.1
"""Relative difference of states that count as equal."""


class Measured(NamedTuple):
    """An architecture of a study on a task, at its chosen learning rate, with the seeds that measure."""

    task: str
    arch: str
    state: int
    loads: dict[str, int]
    """Load of each cell."""
    accuracies: dict[int, dict[str, float]]
    """Accuracy by seed and cell."""
    floors: dict[str, float]
    """Median floor of the records by cell."""


def measured(path: Path) -> list[Measured]:
    """Read the runs that measure: at the rate with the best median validation, of seeds that had no part in it."""
    rows: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    with path.open() as lines:
        for row in csv.DictReader(lines):
            if row["status"] in ("ok", "diverged"):
                rows[row["task"], row["arch"]].append(row)
    return [choose(task, arch, own) for (task, arch), own in rows.items()]


def choose(task: str, arch: str, rows: list[dict[str, str]]) -> Measured:
    """Choose the learning rate of an architecture, and keep the seeds that measure."""
    rates: dict[int, set[float]] = defaultdict(set)
    for row in rows:
        rates[int(row["seed"])].add(float(row["lr"]))
    tuning = {seed for seed, seen in rates.items() if len(seen) > 1}
    scores: dict[float, dict[int, float]] = defaultdict(dict)
    for row in rows:
        if int(row["seed"]) in tuning:
            scores[float(row["lr"])][int(row["seed"])] = float(row["validation"] or 0)
    best = choose_rate({rate: rate_score([*seeds.values()]) for rate, seeds in scores.items()})
    own = [row for row in rows if float(row["lr"]) == best]
    own = [row for row in own if int(row["seed"]) not in tuning] or own
    accuracies: dict[int, dict[str, float]] = defaultdict(dict)
    floors: dict[str, list[float]] = defaultdict(list)
    for row in own:
        accuracies[int(row["seed"])][row["cell"]] = float(row["accuracy"])
        floors[row["cell"]].append(float(row["floor"]))
    loads = {row["cell"]: int(row["load"]) for row in own}
    typical = {cell: median(values) for cell, values in floors.items()}
    return Measured(task, arch, int(own[0]["state_elements"]), loads, accuracies, typical)


def new_floors(task: str, seeds: list[int], examples: int) -> dict[str, float]:
    """Return the median floor of each cell over data seeds, by the solvers known now."""
    made = make_task(task_component(task))
    streams = [ExampleStream(made, cell, "test", seeds, torch.device("cpu")) for cell in made.eval_cells]
    return {
        stream.cell.label: median(found.floor for found in floors_by_member(stream, examples)) for stream in streams
    }


def half(entry: Measured, floors: dict[str, float]) -> str:
    """Return K50 with these floors; `-` where the loads do not tell."""
    cells = sorted(entry.loads, key=lambda cell: entry.loads[cell])
    if len({entry.loads[cell] for cell in cells}) < max(2, len(cells)):
        return "-"
    values = [[own[cell] for cell in cells] for own in entry.accuracies.values()]
    fit = capacity([entry.loads[cell] for cell in cells], values, [floors[cell] for cell in cells])
    return format_load(fit.k50) if fit else "-"


def corrected(entry: Measured, floors: dict[str, float]) -> list[float]:
    """Return the chance-corrected accuracy of each seed, mean over cells."""
    own = entry.accuracies.values()
    return [sum(chance_corrected(seed[cell], floors[cell]) for cell in seed) / len(seed) for seed in own]


def pairs(entries: list[Measured]) -> list[tuple[str, float, float]]:
    """Return every pair of equal state with its p of a rank test, alone and adjusted over the study."""
    found = []
    for one, other in itertools.combinations(entries, 2):
        if one.task == other.task and abs(one.state - other.state) <= STATE_TOLERANCE * max(one.state, other.state):
            means = [[sum(seed.values()) / len(seed) for seed in entry.accuracies.values()] for entry in (one, other)]
            name = f"{one.arch} ({median(means[0]):.3f}) and {other.arch} ({median(means[1]):.3f})"
            found.append((name, rank_test(*means)))
    adjusted = holm([p for _, p in found])
    return [(name, p, whole) for (name, p), whole in zip(found, adjusted, strict=True)]


def report(name: str, folder: Path) -> None:
    """Print the new numbers of a study."""
    entries = measured(folder / f"{name}_files" / "runs.csv")
    examples = EXAMPLES.get(name, 512)
    seeds: dict[str, set[int]] = defaultdict(set)
    for entry in entries:
        seeds[entry.task] |= set(entry.accuracies)
    floors = {task: new_floors(task, sorted(own), examples) for task, own in seeds.items()}
    print(f"\n== {name}")
    for task, found in floors.items():
        old = next(entry.floors for entry in entries if entry.task == task)
        print(task, "floors", *(f"{cell} {old[cell]:.3f} -> {found[cell]:.3f}" for cell in found), sep="\t")
    for entry in entries:
        both = (entry.floors, floors[entry.task])
        halves, scores = [half(entry, one) for one in both], [median(corrected(entry, one)) for one in both]
        numbers = f"K50 {halves[0]} -> {halves[1]}", f"corrected {scores[0]:.3f} -> {scores[1]:.3f}"
        print(entry.task, entry.arch, *numbers, sep="\t")
    if len(floors) == 1:
        for text, p, whole in pairs(entries):
            print(f"{text}\tp {p:.4f}\tover the study {whole:.3f}")
        return
    for arch in dict.fromkeys(entry.arch for entry in entries):
        own = [entry for entry in entries if entry.arch == arch]
        means = [
            aggregate([corrected(one, found) for one, found in zip(own, choice, strict=True)])[0]
            for choice in ([one.floors for one in own], [floors[one.task] for one in own])
        ]
        print(f"{arch}\tinterquartile mean {means[0]:.3f} -> {means[1]:.3f}")


def main() -> None:
    """Print the new numbers of the studies named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=NAMES, help="studies; all of that day by default")
    parser.add_argument("--studies", type=Path, default=Path("docs/studies"))
    options = parser.parse_args()
    for name in options.names:
        report(name, options.studies)


if __name__ == "__main__":
    main()
