"""Sort finished runs into sections by task and entries by architecture, and choose the learning rate of each entry.

The rules of the evaluation protocol:

* The learning rate of an entry is the one with the best median validation accuracy; test accuracy plays no part.
* Seeds that ran at several rates are tuning seeds. Where other seeds ran at one rate, that is the rate which the study
  chose, by its own rule on validation accuracy, and only these seeds measure.
* A diverged run recalled nothing and counts as accuracy 0. A run that ended out of memory, out of time, in a crash or
  in an exception says nothing about recall: the report lists it and leaves it out of the scores.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import Any, Literal, NamedTuple

from icl_bench.reports.context import NO_STUDY, StudyContext
from icl_bench.reports.entry import Entry, RateScore
from icl_bench.reports.naming import common_items, natural_key, split_entries
from icl_bench.reports.statistics import chance_corrected, clustered_error, median
from icl_bench.runs.outline import (
    CellExamples,
    Evaluation,
    FinishedRuns,
    MeasuredRun,
    Outline,
    ReadProbes,
    Seeds,
    Setting,
)
from icl_bench.runs.rates import SCORED, is_bimodal, locked_in

order_in_setting = attrgetter("lr", "seeds", "id")
"""Sorting key of a run among the runs of its setting."""


Training = Literal["trained", "bimodal", "at the floor", "untrained", "no score"]
"""Outcome of training over seeds: all seeds leave the floor, seeds of two modes, none leaves it, none and the median is
below it."""


class CellInfo(NamedTuple):
    """A load and length of a task."""

    label: str
    load: int
    length: int


class Floor(NamedTuple):
    """The accuracy of the best trivial solver in a cell."""

    accuracy: float
    """Median over runs."""
    solver: str
    """The solver that reached it most often."""
    error: float
    """Half-width of the 95 % range of an accuracy at the floor over the test examples of a run."""


@dataclass(frozen=True, eq=False)
class Section:
    """The runs and results of one task."""

    task: str
    load_name: str
    """The unit of a cell's load."""
    entries: tuple[Entry, ...]
    """By label."""
    cells: tuple[CellInfo, ...]
    """By load and length."""
    evaluations: Mapping[Evaluation, int]
    """Distinct evaluations, and the number of runs of each."""
    context: StudyContext
    """The study that the report is part of."""
    report: Sequence["Section"]
    """Every section of the report: the comparisons in all of them are one family of tests."""
    probes: ReadProbes
    """Read the probes of a run."""

    @cached_property
    def runs(self) -> tuple[Outline, ...]:
        """Every run."""
        return tuple(run for entry in self.entries for run in entry.runs)

    @cached_property
    def settings(self) -> tuple[Setting, ...]:
        """Every setting, in the order of runs."""
        return tuple(dict.fromkeys(run.setting for run in self.runs))

    @cached_property
    def common_parameters(self) -> tuple[str, ...]:
        """Parameters that are equal in all architectures, which labels leave out."""
        return tuple(sorted({item for items in common_items(self.settings) for item in items}))

    @cached_property
    def families(self) -> tuple[str, ...]:
        """Families of architectures, in natural order."""
        return tuple(sorted({entry.family for entry in self.entries}, key=natural_key))

    @cached_property
    def kinds(self) -> frozenset[str]:
        """Architectures without their sizes; an entry is one of them at a size, width, budget or optimiser."""
        return frozenset(entry.kind for entry in self.entries)

    @cached_property
    def examples(self) -> int:
        """Number of test examples of a cell; the smallest of any run."""
        return min(int(setting.spec["evaluation"]["examples"]) for setting in self.settings)

    @cached_property
    def cell_examples(self) -> Mapping[str, Counter[CellExamples]]:
        """Descriptions of the test examples of each cell, and the number of runs of each, by label."""
        found: dict[str, Counter[CellExamples]] = defaultdict(Counter)
        for evaluation, number in self.evaluations.items():
            for examples in evaluation.cells:
                found[examples.label][examples] += number
        return found

    @cached_property
    def controls(self) -> tuple[str, ...]:
        """Names of the controls of any run, sorted."""
        return tuple(sorted({name for evaluation in self.evaluations for name in evaluation.controls}))

    @cached_property
    def floors(self) -> Mapping[str, Floor]:
        """The floor of each cell, by label."""
        by_data: dict[str, dict[int, float]] = defaultdict(dict)
        for run in self.runs:
            for examples in run.evaluation.cells:
                by_data[examples.label][run.seeds[1]] = examples.floor
        return {
            label: floor_of(seen, list(by_data[label].values()), self.examples)
            for label, seen in self.cell_examples.items()
        }

    @cached_property
    def references(self) -> Mapping[str, Mapping[str, float]]:
        """Accuracy of solvers that keep the whole context and learn nothing, by name and cell; medians over runs."""
        found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for label, seen in self.cell_examples.items():
            for name, accuracy in (pair for examples in seen.elements() for pair in examples.references):
                found[name][label].append(accuracy)
        return {name: {label: median(values) for label, values in cells.items()} for name, cells in found.items()}

    @cached_property
    def repeated(self) -> Mapping[str, float]:
        """Share of the test examples of each cell that were trained on, where it is not 0; the largest of any run."""
        shares = {label: [one.repeated or 0.0 for one in seen] for label, seen in self.cell_examples.items()}
        return {label: max(found) for label, found in shares.items() if max(found) > 0}

    @cached_property
    def has_errors(self) -> bool:
        """True if answers are vectors, which have a squared error."""
        return any(entry.errors for entry in self.entries)

    @property
    def differs_in_state(self) -> bool:
        """True if entries with a score carry states of different sizes."""
        return len({entry.state_elements for entry in self.entries if entry.accuracies} - {None}) > 1

    @cached_property
    def mean_floor(self) -> float | None:
        """Mean of the floors of the cells."""
        floors = [floor.accuracy for floor in self.floors.values()]
        return sum(floors) / len(floors) if floors else None

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """Groups of scored positions, in their natural order."""
        names = {name for evaluation in self.evaluations for name in evaluation.groups}
        return tuple(sorted(names, key=natural_key))

    def locked_seeds(self, entry: Entry) -> list[Seeds]:
        """Return the seeds of an entry whose mean accuracy over cells has left the floor."""
        return [seeds for seeds, accuracy in entry.accuracies.items() if locked_in(accuracy, self.mean_floor or 0.0)]

    def training(self, entry: Entry) -> Training:
        """Return the outcome of training an entry, over its seeds."""
        floor, accuracies = self.mean_floor or 0.0, list(entry.accuracies.values())
        if not accuracies:
            return "no score"
        if not self.locked_seeds(entry):
            return "untrained" if median(accuracies) < floor else "at the floor"
        return "bimodal" if is_bimodal(accuracies, floor) else "trained"

    def any_rate_trained(self, entry: Entry) -> bool:
        """Return whether any seed of the sweep of an entry left the floor, by validation accuracy."""
        found = [accuracy for rate in entry.rates for accuracy in rate.by_seed.values()]
        return any(locked_in(accuracy, self.mean_floor or 0.0) for accuracy in found)

    def corrected_scores(self, entry: Entry) -> list[float]:
        """Return the chance-corrected accuracy of each seed of an entry, mean over cells."""
        cells = [(entry.in_cell(label), floor.accuracy) for label, floor in self.floors.items() if floor.accuracy < 1]
        seeds = sorted(set.intersection(*(set(scores) for scores, _ in cells))) if cells else []
        return [sum(chance_corrected(scores[seed], floor) for scores, floor in cells) / len(cells) for seed in seeds]


def analyse(runs: FinishedRuns, context: StudyContext = NO_STUDY) -> tuple[Section, ...]:
    """Sort runs of a study into sections and entries; the order of `runs.outlines` has no influence."""
    by_setting: dict[Setting, list[Outline]] = defaultdict(list)
    for run in sorted(runs.outlines, key=order_in_setting):
        by_setting[run.setting].append(run)
    by_task: dict[str, list[list[Outline]]] = defaultdict(list)
    for members in sorted(by_setting.values(), key=lambda members: run_order(members[0])):
        by_task[members[0].setting.task].append(members)
    report: list[Section] = []
    for task in sorted(by_task, key=natural_key):
        report.append(make_section(by_task[task], runs, context, report))
    return tuple(report)


def run_order(run: Outline) -> tuple[Any, ...]:
    """Return the sorting key of a run in a report."""
    return natural_key(run.setting.task), natural_key(run.setting.arch), *order_in_setting(run)


def make_section(
    settings: Sequence[Sequence[Outline]], finished: FinishedRuns, context: StudyContext, report: Sequence[Section]
) -> Section:
    """Make the section of one task from the runs of each of its settings; `report` will hold all sections."""
    split = split_entries(settings)
    entries = [make_entry(name, family, runs, finished.load) for (name, family), runs in split.items()]
    evaluations = Counter(run.evaluation for runs in settings for run in runs)
    cells = {CellInfo(one.label, one.load, one.length) for evaluation in evaluations for one in evaluation.cells}
    return Section(
        task=settings[0][0].setting.task,
        load_name=settings[0][0].setting.load_name,
        entries=tuple(sorted(entries, key=lambda entry: natural_key(entry.label))),
        cells=tuple(sorted(cells, key=lambda cell: (cell.load, cell.length, cell.label))),
        evaluations=evaluations,
        context=context,
        report=report,
        probes=finished.probes,
    )


def make_entry(label: str, family: str, runs: Sequence[Outline], load: Callable[[str], MeasuredRun]) -> Entry:
    """Make an entry with its sweep of learning rates."""
    first: dict[Seeds, float] = {}
    choosing = frozenset(run.seeds for run in runs if first.setdefault(run.seeds, run.lr) != run.lr)
    by_rate: dict[float, dict[Seeds, float]] = {run.lr: {} for run in runs}
    for run in runs:
        if run.status in SCORED and (not choosing or run.seeds in choosing):
            by_rate[run.lr][run.seeds] = run.validation
    rates = (RateScore(rate, by_seed) for rate, by_seed in sorted(by_rate.items()))
    return Entry(label, family, tuple(runs), load, choosing, tuple(rates))


def floor_of(seen: Counter[CellExamples], by_data: Sequence[float], examples: int) -> Floor:
    """Return the floor of a cell, from the descriptions of its examples and the number of runs of each.

    `by_data` is the floor on the examples of each data seed, `examples` their number.
    """
    solvers = Counter(sorted(one.floor_solver for one in seen.elements()))
    accuracy = median([one.floor for one in seen.elements()])
    error = clustered_error(accuracy, by_data, examples, min(one.scored for one in seen))
    return Floor(accuracy, solvers.most_common(1)[0][0], error)
