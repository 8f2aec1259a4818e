"""Test the two claims of adaptive-degree: power attention with learned shares beside that of fixed degrees.

    python benchmarks/degree_claims.py [STORE] [--study adaptive-degree-2] [--steps 8000] [--degree 2] [--lower STUDY]

Runs come from the published report of the study, or from a store.

Weak claim, for each size: a seed has the mean of its accuracies on the tasks that all degrees finished there; with
learned shares the median over seeds is above that of each fixed degree. Strong claim, for each task and size: it is
nowhere below the fixed degree with the best median validation accuracy, and above it somewhere. Differences are shifts;
p by rank tests, adjusted by Holm's method over the rows of a table, whose intervals hold together (each at 1 - .05 / m
for m rows). A lost run counts as 0.

Where the study, or that of `--lower`, also holds a quarter of the budget, tables show by how much each median moved
from there to here, and whether the answer of each row of both claims is the same: learned shares above, below or level,
at p < .05. At 280 elements seeds stand on plateaus and leave one for a higher one: a last table counts those above the
level between two of them, at each budget.
"""

import argparse
import csv
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import NamedTuple

from icl_bench.harness.study.file import Study, load_study
from icl_bench.harness.study.protocol import finished_study
from icl_bench.reports.parts.ladder import SETTLED
from icl_bench.reports.ranking import SIGNIFICANT
from icl_bench.reports.statistics import Shift, holm, rank_test, shift_between
from icl_bench.runs.columns import Row, score_rows
from icl_bench.runs.outline import measured
from icl_bench.runs.store import Store
from icl_bench.schema import parse_spec

STUDIES = Path(__file__).parents[1] / "docs" / "studies"
"""Folder of the published reports."""
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
    subject: str
    """What is compared at every budget, whichever fixed degree is the best there."""


class Tested(NamedTuple):
    """A comparison with its tests, adjusted over the rows of a table."""

    row: Comparison
    shift: Shift
    """Learned shares less the fixed degree."""
    own: float
    adjusted: float
    """p before and after Holm's correction."""

    @property
    def answer(self) -> str:
        """Return where learned shares stand."""
        return "level" if self.adjusted >= SIGNIFICANT else "above" if self.shift.value > 0 else "below"


def stored_rows(study: Study, store: Store) -> Iterator[Row]:
    """Yield a row for each cell of the runs of a store that measure."""
    for record in finished_study(study, store).measured:
        yield from score_rows(measured(record))


def published_rows(study: Study) -> Iterator[Row]:
    """Yield the rows of the runs that measure from the published report of a study."""
    with (STUDIES / f"{study.name}_files" / "runs.csv").open(newline="") as lines:
        yield from (dict(row) for row in csv.DictReader(lines) if int(row["seed"]) not in study.tune_seeds)


def kind_of(arch: str, degree: int) -> int | None:
    """Return the degree of an architecture, `LEARNED` for learned shares below `degree`; None for any other."""
    params = parse_spec(arch).params
    spectrum, p = params.get("spectrum"), params.get("p")
    if spectrum is None and "offset" not in params and isinstance(p, int):
        return p
    return LEARNED if spectrum == "learned" and p == degree else None


def entries_of(study: Study, rows: Sequence[Row], steps: int, degree: int) -> dict[Place, dict[int, Entry]]:
    """Return the entries of each place at a budget: fixed degrees by their number, learned shares as `LEARNED`."""
    found: dict[Place, dict[int, dict[int, list[Row]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for row in rows:
        kind = kind_of(str(row["arch"]), degree)
        if kind is None or not row["state_elements"] or int(row["steps"] or 0) != steps:
            continue
        distances = {size: abs(size - int(row["state_elements"])) for size in study.sizes}
        place = Place(str(row["task"]), min(distances, key=distances.__getitem__))
        found[place][kind][int(row["seed"] or 0)].append(row)
    return {place: {kind: entry_of(seeds) for kind, seeds in kinds.items()} for place, kinds in found.items()}


def entries_at(name: str, store: Store | None, steps: int, degree: int) -> dict[Place, dict[int, Entry]]:
    """Return the entries of a study at a budget, from a store or from its published report."""
    study = load_study(name)
    return entries_of(study, [*(stored_rows(study, store) if store else published_rows(study))], steps, degree)


def entry_of(seeds: Mapping[int, Sequence[Row]]) -> Entry:
    """Return the entry of the cells of each seed of an architecture; those of a lost run have no accuracy."""
    ordered = [seeds[seed] for seed in sorted(seeds)]
    accuracies = tuple(fmean(float(row["accuracy"] or 0) for row in cells) for cells in ordered)
    last = [float(cells[0]["validation"] or 0) if cells[0]["status"] == "ok" else 0.0 for cells in ordered]
    return Entry(accuracies, median(last))


def weak(places: Mapping[Place, Mapping[int, Entry]]) -> list[Comparison]:
    """Return the comparisons of each size with each fixed degree, over the tasks that all degrees finished."""
    rows, degrees = [], sorted({kind for kinds in places.values() for kind in kinds} - {LEARNED})
    for size in sorted({place.size for place in places}):
        whole = [kinds for place, kinds in places.items() if place.size == size and len(kinds) == len(degrees) + 1]
        if not whole:
            continue
        scores = {kind: [fmean(seed) for seed in zip(*(kinds[kind].accuracies for kinds in whole), strict=True)]
                  for kind in (LEARNED, *degrees)}  # fmt: skip
        titles = {p: f"{size}, {len(whole)} tasks, p = {p}" for p in degrees}
        rows += [Comparison(titles[p], scores[LEARNED], scores[p], titles[p]) for p in degrees]
    return rows


def strong(places: Mapping[Place, Mapping[int, Entry]]) -> list[Comparison]:
    """Return the comparison of each place with the fixed degree of the best median validation accuracy."""
    rows = []
    for place, kinds in sorted(places.items()):
        fixed = [kind for kind in kinds if kind != LEARNED]
        if LEARNED in kinds and fixed:
            best = max(fixed, key=lambda kind: kinds[kind].validation)
            subject = f"{place.task}, {place.size}"
            title = f"{subject}, p = {best} of {len(fixed)}"
            rows.append(Comparison(title, kinds[LEARNED].accuracies, kinds[best].accuracies, subject))
    return rows


def tested(rows: Sequence[Comparison]) -> list[Tested]:
    """Return the comparisons of a table with their tests."""
    tests = [rank_test(row.learned, row.fixed) for row in rows]
    shifts = [shift_between(row.learned, row.fixed, 1 - SIGNIFICANT / len(rows)) for row in rows]
    return [Tested(*fields) for fields in zip(rows, shifts, tests, holm(tests), strict=True)]


def table(rows: Sequence[Comparison]) -> list[str]:
    """Return the lines of a table in Markdown."""
    lines = ["| beside | learned | fixed | difference | interval | p | adjusted |", "| :-- |" + " --: |" * 6]
    for row, shift, own, adjusted in tested(rows):
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


def answers(lower: Sequence[Comparison], upper: Sequence[Comparison]) -> list[str]:
    """Return the lines of a table of the answers that two budgets give to the rows of a claim, and how many agree."""
    before = {test.row.subject: test.answer for test in tested(lower)}
    lines, same = ["| comparison | lower | upper |", "| :-- | :-- | :-- |"], []
    for test in tested(upper):
        subject = test.row.subject
        if subject in before:
            same.append(before[subject] == test.answer)
            lines.append(f"| {subject.replace('|', ' ')} | {before[subject]} | {test.answer} |")
    return [*lines, "", f"{sum(same)} of {len(same)} answers are the same."] if same else []


def shared(
    lower: Mapping[Place, Mapping[int, Entry]], upper: Mapping[Place, Mapping[int, Entry]]
) -> dict[Place, dict[int, Entry]]:
    """Return the entries of a budget that another one has too."""
    both = lower.keys() & upper.keys()
    return {place: {kind: lower[place][kind] for kind in lower[place].keys() & upper[place].keys()} for place in both}


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
    parser.add_argument("store", type=Path, nargs="?")
    parser.add_argument("--study", default="adaptive-degree-2")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--degree", type=int, default=2, help="Degree whose lower degrees are learned.")
    parser.add_argument("--lower", help="Study whose runs are those of smaller budgets; by default the same one.")
    arguments = parser.parse_args()
    store, steps = arguments.store and Store(arguments.store), arguments.steps
    sources = dict.fromkeys((steps // 16, steps // 4), arguments.lower or arguments.study) | {steps: arguments.study}
    budgets = {count: entries_at(name, store, count, arguments.degree) for count, name in sources.items()}
    _, lower, places = budgets.values()
    for place, kinds in sorted(places.items()):
        for kind, entry in sorted(kinds.items()):
            seeds = " ".join(f"{accuracy:.3f}" for accuracy in sorted(entry.accuracies))
            print(f"{place.task}, {place.size}, {name_of(kind)}: {median(entry.accuracies):.3f}, the median of {seeds}")
    print("\nWeak claim:\n", *table(weak(places)), "\nStrong claim:\n", *table(strong(places)), sep="\n")
    for claim in (weak, strong):
        if lines := answers(claim(shared(lower, places)), claim(shared(places, lower))):
            print(f"\nAnswers of the {claim.__name__} claim at a quarter of the budget:\n", *lines, sep="\n")
    if lines := moves(lower, places):
        print("\nFrom a quarter of the budget:\n", *lines, sep="\n")
    if lines := above_levels(budgets):
        print("\nSeeds above the level between two plateaus, by updates:\n", *lines, sep="\n")


if __name__ == "__main__":
    main()
