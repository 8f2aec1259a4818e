"""Test the two claims of adaptive-degree on a store: power attention with learned shares beside that of fixed degrees.

    python benchmarks/degree_claims.py STORE [--study adaptive-degree-2] [--steps 8000] [--degree 2]

Weak claim, for each size: a seed has the mean of its accuracies on the tasks that all degrees finished there; with
learned shares the median over seeds is above that of each fixed degree. Strong claim, for each task and size: it is
nowhere below the fixed degree with the best median validation accuracy, and above it somewhere. Differences are shifts;
p by rank tests, adjusted by Holm's method over the rows of a table, whose intervals hold together (each at 1 - .05 / m
for m rows). A lost run counts as 0.

Where the store also holds a quarter of the budget, a table shows by how much each median moved from there to here. At
280 elements seeds stand on plateaus and leave one for a higher one: a last table counts those above the level between
two of them, at each budget.
"""

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import NamedTuple

from icl_bench.harness.study.file import Study, load_study
from icl_bench.harness.study.protocol import finished_study
from icl_bench.reports.parts.ladder import SETTLED
from icl_bench.reports.statistics import holm, rank_test, shift_between
from icl_bench.runs.rates import validation_accuracy
from icl_bench.runs.record import RunRecord
from icl_bench.runs.store import Store

LEARNED = 0
"""Name of the learned shares among the degrees."""
LEVELS = {"assoc-recall": 0.66, "vector-recall": 0.85, "in-context-recall": 0.85, "copy": 0.85}
"""Accuracy between two plateaus of the seeds at `LEVELS_SIZE` elements, by task."""
LEVELS_SIZE = 280
"""Elements of state to which `LEVELS` belong."""


class Place(NamedTuple):
    """A task and a size of state, in elements."""

    task: str
    size: int


class Entry(NamedTuple):
    """The measuring seeds of an architecture at a place, in their order."""

    accuracies: tuple[float, ...]
    validation: float
    """Median of their last validation accuracies."""


class Comparison(NamedTuple):
    """Learned shares beside a fixed degree."""

    title: str
    learned: Sequence[float]
    fixed: Sequence[float]


def entries_of(study: Study, store: Store, steps: int, degree: int) -> dict[Place, dict[int, Entry]]:
    """Return the entries of each place at a budget: fixed degrees by their number, learned shares as `LEARNED`."""
    found: dict[Place, dict[int, list[RunRecord]]] = defaultdict(lambda: defaultdict(list))
    for record in finished_study(study, store).measured:
        params, state = record.spec["arch"][0]["params"], record.result.state
        kind: int = LEARNED if params.get("spectrum") else params["p"]
        other = params.get("spectrum") not in (None, "learned") or (kind == LEARNED and params["p"] != degree)
        if other or state is None or record.spec["train"]["steps"] != steps:
            continue
        distances = {size: abs(size - state.elements) for size in study.sizes}
        found[Place(record.result.task, min(distances, key=distances.__getitem__))][kind].append(record)
    return {
        place: {kind: entry_of(sorted(runs, key=lambda run: run.result.seed)) for kind, runs in kinds.items()}
        for place, kinds in found.items()
    }


def entry_of(runs: Sequence[RunRecord]) -> Entry:
    """Return the entry of the runs of an architecture."""
    accuracies = tuple(run.result.accuracy if run.result.status == "ok" else 0.0 for run in runs)
    return Entry(accuracies, median(map(validation_accuracy, runs)))


def weak(places: Mapping[Place, Mapping[int, Entry]]) -> list[Comparison]:
    """Return the comparisons of each size with each fixed degree, over the tasks that all degrees finished."""
    rows, degrees = [], sorted({kind for kinds in places.values() for kind in kinds} - {LEARNED})
    for size in sorted({place.size for place in places}):
        whole = [kinds for place, kinds in places.items() if place.size == size and len(kinds) == len(degrees) + 1]
        if not whole:
            continue
        scores = {kind: [fmean(seed) for seed in zip(*(kinds[kind].accuracies for kinds in whole), strict=True)]
                  for kind in (LEARNED, *degrees)}  # fmt: skip
        rows += [Comparison(f"{size}, {len(whole)} tasks, p = {p}", scores[LEARNED], scores[p]) for p in degrees]
    return rows


def strong(places: Mapping[Place, Mapping[int, Entry]]) -> list[Comparison]:
    """Return the comparison of each place with the fixed degree of the best median validation accuracy."""
    rows = []
    for place, kinds in sorted(places.items()):
        fixed = [kind for kind in kinds if kind != LEARNED]
        if LEARNED in kinds and fixed:
            best = max(fixed, key=lambda kind: kinds[kind].validation)
            title = f"{place.task}, {place.size}, p = {best} of {len(fixed)}"
            rows.append(Comparison(title, kinds[LEARNED].accuracies, kinds[best].accuracies))
    return rows


def table(rows: Sequence[Comparison]) -> list[str]:
    """Return the lines of a table in Markdown."""
    lines = ["| beside | learned | fixed | difference | interval | p | adjusted |", "| :-- |" + " --: |" * 6]
    tests = [rank_test(row.learned, row.fixed) for row in rows]
    for row, own, adjusted in zip(rows, tests, holm(tests), strict=True):
        shift = shift_between(row.learned, row.fixed, 1 - 0.05 / len(rows))
        medians = f"{median(row.learned):.3f} | {median(row.fixed):.3f} | {shift.value:+.3f}"
        interval = f"{shift.interval.low:+.3f} to {shift.interval.high:+.3f}"
        lines.append(f"| {row.title.replace('|', ' ')} | {medians} | {interval} | {own:.2g} | {adjusted:.2g} |")
    return lines


def moves(lower: Mapping[Place, Mapping[int, Entry]], upper: Mapping[Place, Mapping[int, Entry]]) -> list[str]:
    """Return the lines of a table of the medians of entries that two budgets share, and the number that settled."""
    lines, settled = ["| entry | lower | upper | move |", "| :-- |" + " --: |" * 3], []
    for place, kinds in sorted(upper.items()):
        for kind in sorted(kinds.keys() & lower.get(place, {}).keys()):
            before, after = (median(budget[place][kind].accuracies) for budget in (lower, upper))
            settled.append(abs(after - before) <= SETTLED)
            title = f"{place.task.replace('|', ' ')}, {place.size}, {name_of(kind)}"
            lines.append(f"| {title} | {before:.3f} | {after:.3f} | {after - before:+.3f} |")
    return [*lines, "", f"{sum(settled)} of {len(settled)} medians moved by at most {SETTLED}."] if settled else []


def above_levels(budgets: Mapping[int, Mapping[Place, Mapping[int, Entry]]]) -> list[str]:
    """Return the lines of a table of the seeds above the level of their task, by the updates of each budget."""
    counts: dict[str, dict[int, str]] = defaultdict(dict)
    for steps, places in budgets.items():
        for place, kinds in places.items():
            level = LEVELS.get(place.task.partition(":")[0])
            if place.size == LEVELS_SIZE and level is not None:
                for kind, entry in kinds.items():
                    above = sum(accuracy > level for accuracy in entry.accuracies)
                    title = f"{place.task.replace('|', ' ')}, {name_of(kind)}, above {level}"
                    counts[title][steps] = f"{above} of {len(entry.accuracies)}"
    head = ["| entry | " + " | ".join(map(str, budgets)) + " |", "| :-- |" + " --: |" * len(budgets)]
    rows = [f"| {title} | {' | '.join(row.get(steps, '') for steps in budgets)} |" for title, row in counts.items()]
    return [*head, *sorted(rows)] if rows else []


def name_of(kind: int) -> str:
    """Return how a degree, or learned shares, are named."""
    return "learned" if kind == LEARNED else f"p = {kind}"


def main() -> None:
    """Print all seeds by place, a table for each claim, the moves of the medians, and the seeds above a level."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--study", default="adaptive-degree-2")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--degree", type=int, default=2, help="Degree whose lower degrees are learned.")
    arguments = parser.parse_args()
    study, store = load_study(arguments.study), Store(arguments.store)
    budgets = {
        steps: entries_of(study, store, steps, arguments.degree)
        for steps in (arguments.steps // 16, arguments.steps // 4, arguments.steps)
    }
    _, lower, places = budgets.values()
    for place, kinds in sorted(places.items()):
        for kind, entry in sorted(kinds.items()):
            seeds = " ".join(f"{accuracy:.3f}" for accuracy in sorted(entry.accuracies))
            print(f"{place.task}, {place.size}, {name_of(kind)}: {median(entry.accuracies):.3f}, the median of {seeds}")
    print("\nWeak claim:\n", *table(weak(places)), "\nStrong claim:\n", *table(strong(places)), sep="\n")
    if rows := moves(lower, places):
        print("\nFrom a quarter of the budget:\n", *rows, sep="\n")
    if rows := above_levels(budgets):
        print("\nSeeds above the level between two plateaus, by updates:\n", *rows, sep="\n")


if __name__ == "__main__":
    main()
