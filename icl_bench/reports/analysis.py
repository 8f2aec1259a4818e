"""From run records to what a report says: sections by task, entries by architecture, rates chosen on validation.

The rules, from the evaluation protocol:

* The learning rate of an entry is the one with the best median validation accuracy. The test set is never asked.
* Seeds that ran at several rates chose; where other seeds ran at the chosen rate too, these alone measure.
* A diverged run recalled nothing and counts as 0. A run that ended out of memory, out of time, in a crash or in an
  exception says nothing about recall: it is named, and left out of the scores.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import Any, NamedTuple

from icl_bench.reports.naming import common_items, natural_key, split_entries
from icl_bench.reports.statistics import Interval, mean_interval, median, wilson
from icl_bench.runs.outline import Evaluation, Examples, Outline, Seeds, Setting, outlines, seeds_of
from icl_bench.runs.rates import SCORED, choose_rate, has_score, rate_score
from icl_bench.runs.record import CellScore, RunRecord
from icl_bench.runs.store.index import Metrics

SOLVED = 0.99
"""Accuracy from which a run counts as solved."""
place_of = attrgetter("lr", "seeds", "id")
"""Place of a run among those of its setting, a sorting key."""
Curve = tuple[tuple[int, float], ...]
"""Step and validation accuracy of each validation."""


class RateScore(NamedTuple):
    """A learning rate and what it reached on validation."""

    rate: float
    by_seed: Mapping[Seeds, float]
    """Validation accuracy of each seed that ran at this rate; 0 for a diverged run."""

    @property
    def score(self) -> float:
        """Median over seeds; below any accuracy where no run has a score."""
        return rate_score(list(self.by_seed.values()))


class CellInfo(NamedTuple):
    """One load and length of a task."""

    label: str
    load: int
    length: int


class Floor(NamedTuple):
    """What guessing reaches in a cell."""

    accuracy: float
    """Median over runs."""
    solver: str
    """The solver that reached it most often."""


@dataclass(frozen=True, eq=False)
class Entry:
    """An architecture in one setting: a row of the tables."""

    label: str
    """The architecture and what sets it apart in this section."""
    family: str
    """The same without the parameters that set its size."""
    runs: tuple[Outline, ...]
    """Every run, at every rate: by rate, then by seed."""
    choosing_seeds: frozenset[Seeds]
    """Seeds that ran at more than one rate."""
    rates: tuple[RateScore, ...]
    """The sweep, by rising rate, over the seeds that ran at several rates; over all seeds where there are none."""

    @cached_property
    def rate(self) -> float:
        """The chosen learning rate."""
        return choose_rate({rate.rate: rate.score for rate in self.rates})

    @cached_property
    def measuring(self) -> tuple[Outline, ...]:
        """The runs that measure: at the chosen rate, with seeds that did not choose it where there are any."""
        chosen = tuple(run for run in self.runs if run.lr == self.rate)
        return tuple(run for run in chosen if run.seeds not in self.choosing_seeds) or chosen

    @cached_property
    def fresh(self) -> bool:
        """Whether the seeds that measure had no part in choosing the rate."""
        return all(run.seeds not in self.choosing_seeds for run in self.measuring)

    @cached_property
    def measured(self) -> tuple[RunRecord, ...]:
        """The records of the runs that measure."""
        return tuple(run.record for run in self.measuring)

    @cached_property
    def scored(self) -> tuple[RunRecord, ...]:
        """The runs that measure and have a score."""
        return tuple(run for run in self.measured if has_score(run))

    @cached_property
    def failed(self) -> tuple[Outline, ...]:
        """The runs that did not end well, at any rate."""
        return tuple(run for run in self.runs if run.status != "ok")

    @cached_property
    def accuracies(self) -> dict[Seeds, float]:
        """Mean test accuracy over cells, by seed."""
        return {seeds_of(run): run.result.accuracy for run in self.scored}

    @property
    def accuracy(self) -> float | None:
        """Median accuracy over seeds."""
        return median(list(self.accuracies.values())) if self.accuracies else None

    @property
    def interval(self) -> Interval | None:
        """95 % interval of the mean accuracy, within [0, 1]."""
        return limited(mean_interval(list(self.accuracies.values())))

    @cached_property
    def errors(self) -> dict[Seeds, float]:
        """Mean relative squared error over cells, by seed; empty for tokens. A diverged run counts as answering 0."""
        found = {seeds_of(run): run.result.error for run in self.scored}
        known = any(error is not None for error in found.values())
        return {seeds: 1.0 if error is None else error for seeds, error in found.items()} if known else {}

    @property
    def exact_match(self) -> float | None:
        """Median exact match over seeds."""
        return median([run.result.exact_match for run in self.scored]) if self.scored else None

    @property
    def solved(self) -> int:
        """Seeds that solved the task."""
        return sum(accuracy >= SOLVED for accuracy in self.accuracies.values())

    @property
    def solved_interval(self) -> Interval | None:
        """95 % interval of the share of seeds that solve the task."""
        return wilson(self.solved, len(self.accuracies)) if self.accuracies else None

    @property
    def bimodal(self) -> bool:
        """Whether some seeds solve and others stay far below."""
        values = list(self.accuracies.values())
        return 0 < self.solved < len(values) and max(values) - min(values) > 0.2

    @property
    def state_elements(self) -> int | None:
        """Numbers carried after the longest cell."""
        state = self.example.result.state
        return state.elements if state else None

    @cached_property
    def example(self) -> RunRecord:
        """A run to read sizes from: one that ended well, where there is one."""
        return next((run for run in self.runs if run.status == "ok"), self.runs[0]).record

    @property
    def ratio(self) -> float | None:
        """Weight-state FLOP ratio (arXiv 2507.04239, section 3.2); none where there is no state work."""
        work = self.example.result.work
        return work.weights / work.state if work.state else None

    @property
    def rise(self) -> float:
        """Median over seeds of the rise in validation accuracy over the last third of the updates."""
        rises = [late_rise(curve) for run in self.scored if len(curve := curve_of(run)) > 1]
        return median(rises) if rises else 0.0

    def parameter(self, name: str) -> tuple[Any, ...]:
        """Values of a parameter of its layers, but for those of a gated convolution, which are all it is."""
        parts = [part for part in self.example.spec["arch"] if part["name"] != "gated-conv"]
        return tuple(part["params"][name] for part in parts if name in part["params"])

    @property
    def at_edge(self) -> bool:
        """Whether the chosen rate is the lowest or highest of a sweep."""
        return len(self.rates) > 1 and self.rate in (self.rates[0].rate, self.rates[-1].rate)

    @cached_property
    def missing(self) -> tuple[tuple[int, float], ...]:
        """Seeds and rates that the sweep lacks: a choosing seed and a rate that did not run together."""
        there = {(run.seeds, run.lr) for run in self.runs if run.seeds in self.choosing_seeds}
        gaps = itertools.product(self.choosing_seeds, {rate for _, rate in there})
        return tuple((seeds[0], rate) for seeds, rate in sorted(gap for gap in gaps if gap not in there))

    @cached_property
    def columns(self) -> dict[str, dict[Seeds, float]]:
        """What was asked of `in_cell` before."""
        return {}

    def in_cell(self, label: str) -> dict[Seeds, float]:
        """Accuracy in a cell, by seed; 0 for a diverged run."""
        if label not in self.columns:
            cells = [(run, cell_of(run, label)) for run in self.scored]
            self.columns[label] = {
                seeds_of(run): cell.accuracy if cell else 0.0
                for run, cell in cells
                if cell is not None or run.result.status == "diverged"
            }
        return self.columns[label]


@dataclass(frozen=True, eq=False)
class Section:
    """What was measured on one task."""

    task: str
    """The task, as reports name it."""
    load_name: str
    """What the load of a cell counts."""
    entries: tuple[Entry, ...]
    """By label."""
    cells: tuple[CellInfo, ...]
    """By load and length."""
    evaluations: Mapping[Evaluation, int]
    """What runs were evaluated on, and how many of them."""

    @cached_property
    def runs(self) -> tuple[Outline, ...]:
        """Every run."""
        return tuple(run for entry in self.entries for run in entry.runs)

    @cached_property
    def settings(self) -> tuple[Setting, ...]:
        """Every setting, in the order of runs."""
        return tuple(dict.fromkeys(run.setting for run in self.runs))

    @cached_property
    def common(self) -> tuple[str, ...]:
        """Parameters that all architectures share, which labels leave out."""
        return tuple(sorted({item for items in common_items(self.settings) for item in items}))

    @cached_property
    def families(self) -> tuple[str, ...]:
        """Families of architectures, in order."""
        return tuple(sorted({entry.family for entry in self.entries}, key=natural_key))

    @cached_property
    def examples(self) -> int:
        """Test examples of a cell; the fewest of any run."""
        return min(int(setting.spec["evaluation"]["examples"]) for setting in self.settings)

    @cached_property
    def seen(self) -> Mapping[str, Mapping[Examples, int]]:
        """What the runs in each cell, at every rate, say of its examples, and how many say so, by label."""
        found: dict[str, dict[Examples, int]] = defaultdict(dict)
        for evaluation, number in self.evaluations.items():
            for examples in evaluation.cells:
                found[examples.label][examples] = found[examples.label].get(examples, 0) + number
        return found

    @cached_property
    def controls(self) -> tuple[str, ...]:
        """Controls that any run was asked."""
        return tuple(sorted({name for evaluation in self.evaluations for name in evaluation.controls}))

    @cached_property
    def floors(self) -> Mapping[str, Floor]:
        """The floor of each cell, by label."""
        return {label: floor_of(seen) for label, seen in self.seen.items()}

    @cached_property
    def has_errors(self) -> bool:
        """Whether answers are vectors, which have an error."""
        return any(entry.errors for entry in self.entries)

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


def analyse(runs: Iterable[RunRecord | Outline]) -> tuple[Section, ...]:
    """Sort runs into sections and entries; the order in which they come has no influence."""
    by_setting: dict[Setting, list[Outline]] = defaultdict(list)
    for run in outlines(runs):
        by_setting[run.setting].append(run)
    by_task: dict[str, list[list[Outline]]] = defaultdict(list)
    groups = (sorted(members, key=place_of) for members in by_setting.values())
    for members in sorted(groups, key=lambda members: order_of(members[0])):
        by_task[members[0].setting.task].append(members)
    return tuple(make_section(by_task[task]) for task in sorted(by_task, key=natural_key))


def order_of(run: Outline) -> tuple[Any, ...]:
    """Sorting key of a run."""
    return natural_key(run.setting.task), natural_key(run.setting.arch), *place_of(run)


def make_section(settings: Sequence[Sequence[Outline]]) -> Section:
    """The section of one task, from the runs of each setting."""
    entries = [make_entry(name, family, runs) for (name, family), runs in split_entries(settings).items()]
    evaluations = Counter(run.evaluation for runs in settings for run in runs)
    cells = {CellInfo(one.label, one.load, one.length) for evaluation in evaluations for one in evaluation.cells}
    return Section(
        task=settings[0][0].setting.task,
        load_name=settings[0][0].setting.load_name,
        entries=tuple(sorted(entries, key=lambda entry: natural_key(entry.label))),
        cells=tuple(sorted(cells, key=lambda cell: (cell.load, cell.length, cell.label))),
        evaluations=evaluations,
    )


def make_entry(label: str, family: str, runs: Sequence[Outline]) -> Entry:
    """An entry with its sweep."""
    choosing = several_rates(runs)
    by_rate: dict[float, dict[Seeds, float]] = {run.lr: {} for run in runs}
    for run in runs:
        if run.status in SCORED and (not choosing or run.seeds in choosing):
            by_rate[run.lr][run.seeds] = run.validation
    rates = (RateScore(rate, by_seed) for rate, by_seed in sorted(by_rate.items()))
    return Entry(label, family, tuple(runs), choosing, tuple(rates))


def several_rates(runs: Iterable[Outline]) -> frozenset[Seeds]:
    """Seeds that ran at more than one learning rate."""
    first: dict[Seeds, float] = {}
    return frozenset(run.seeds for run in runs if first.setdefault(run.seeds, run.lr) != run.lr)


def curve_of(run: RunRecord) -> Curve:
    """Step and validation accuracy of each validation of a run."""
    if isinstance(run.metrics, Metrics):
        return run.metrics.curve
    return tuple((point.step, point.accuracy) for point in run.metrics)


def late_rise(curve: Curve) -> float:
    """Rise in validation accuracy from the last point within two thirds of the updates, or the first there is."""
    last, accuracy = curve[-1]
    early = [point for point in curve if 3 * point[0] <= 2 * last] or curve[:1]
    return accuracy - early[-1][1]


def floor_of(seen: Mapping[Examples, int]) -> Floor:
    """The floor of a cell."""
    solvers: Counter[str] = Counter()
    for examples, number in seen.items():
        solvers[examples.floor_solver] += number
    return Floor(median([examples.floor for examples in repeated(seen)]), max(sorted(solvers), key=solvers.__getitem__))


def repeated(seen: Mapping[Examples, int]) -> list[Examples]:
    """What is said of a cell, once for each run that says so."""
    return [examples for examples, number in seen.items() for _ in range(number)]


def cell_of(run: RunRecord, label: str) -> CellScore | None:
    """The score of a run in a cell."""
    return next((cell for cell in run.result.cells if cell.label == label), None)


def limited(interval: Interval | None) -> Interval | None:
    """An interval of a share, kept within [0, 1]."""
    return Interval(max(0.0, interval.low), min(1.0, interval.high)) if interval else None
