"""An entry of a report: the runs of one architecture in one setting, its learning rate, and its scores over seeds."""

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from icl_bench.reports.naming import family_of, flatten
from icl_bench.reports.statistics import Interval, median, median_interval
from icl_bench.runs.declarations import ArchitectureDeclaration
from icl_bench.runs.outline import Curve, MeasuredRun, Outline, Seeds, seeds_of
from icl_bench.runs.rates import SCORED, choose_rate, rate_score
from icl_bench.runs.record import SOLVED, CellScore
from icl_bench.runs.spec import FORMER_VALUES

ZERO_ERROR = 1.0
"""Mean squared error of answering 0, on average: errors are divided by it."""


class RateScore(NamedTuple):
    """A learning rate of a sweep and its validation accuracies."""

    rate: float
    by_seed: Mapping[Seeds, float]
    """Validation accuracy of each seed that ran at this rate; 0 for a diverged run."""

    @property
    def score(self) -> float:
        """Median over seeds; below any accuracy where no run has a score."""
        return rate_score(list(self.by_seed.values()))


@dataclass(frozen=True, eq=False)
class Entry:
    """An architecture in one setting: a row of the tables."""

    label: str
    """The architecture, and the fields that tell it apart from others in this section."""
    family: str
    """The label without the parameters that set the size."""
    runs: tuple[Outline, ...]
    """Every run, at every rate: by rate, then by seed."""
    load: Callable[[str], MeasuredRun]
    """Load a run by its id."""
    choosing_seeds: frozenset[Seeds]
    """Seeds that ran at more than one rate."""
    rates: tuple[RateScore, ...]
    """The sweep, by rising rate, over the seeds that ran at several rates; over all seeds where there are none."""
    cell_accuracies: dict[str, dict[Seeds, float]] = field(default_factory=dict)
    """Results of earlier calls of `in_cell`, by cell."""

    @cached_property
    def rate(self) -> float:
        """The chosen learning rate: that of the fresh seeds of a study, else the best by median validation accuracy."""
        fresh = {run.lr for run in self.runs if self.choosing_seeds and run.seeds not in self.choosing_seeds}
        return fresh.pop() if len(fresh) == 1 else self.best_rate

    @cached_property
    def best_rate(self) -> float:
        """The learning rate with the best median validation accuracy."""
        return choose_rate({rate.rate: rate.score for rate in self.rates})

    @property
    def lost_by_rate(self) -> float:
        """Median validation accuracy of the sweep at its best rate, less that at the chosen one."""
        scores = {rate.rate: rate.score for rate in self.rates}
        return scores[self.best_rate] - scores.get(self.rate, scores[self.best_rate])

    @cached_property
    def measuring(self) -> tuple[Outline, ...]:
        """The runs that measure: at the chosen rate, with seeds that did not choose it where there are any."""
        chosen = tuple(run for run in self.runs if run.lr == self.rate)
        return tuple(run for run in chosen if run.seeds not in self.choosing_seeds) or chosen

    @cached_property
    def fresh(self) -> bool:
        """True if the seeds that measure had no part in choosing the rate."""
        return all(run.seeds not in self.choosing_seeds for run in self.measuring)

    @cached_property
    def measured(self) -> tuple[MeasuredRun, ...]:
        """The runs that measure, loaded."""
        return tuple(self.load(run.id) for run in self.measuring)

    @cached_property
    def scored(self) -> tuple[MeasuredRun, ...]:
        """The runs that measure and have a score."""
        return tuple(run for run in self.measured if run.result.status in SCORED)

    @cached_property
    def failed(self) -> tuple[Outline, ...]:
        """The runs, at any rate, that did not end well."""
        return tuple(run for run in self.runs if run.status != "ok")

    @cached_property
    def accuracies(self) -> dict[Seeds, float]:
        """Mean test accuracy over cells, by seed."""
        return {seeds_of(run): run.result.accuracy for run in self.scored}

    @property
    def accuracy(self) -> float | None:
        """Median accuracy over seeds."""
        return known_median(list(self.accuracies.values()))

    @property
    def interval(self) -> Interval | None:
        """Interval of the median accuracy; None for one seed."""
        return median_interval(list(self.accuracies.values()))

    @cached_property
    def errors(self) -> dict[Seeds, float]:
        """Mean relative squared error over cells, by seed; empty for tokens. A diverged run counts as answering 0."""
        found = {seeds_of(run): run.result.error for run in self.scored}
        known = any(error is not None for error in found.values())
        return {seeds: ZERO_ERROR if error is None else error for seeds, error in found.items()} if known else {}

    @property
    def error(self) -> float | None:
        """Median error over seeds; none for tokens."""
        return known_median(list(self.errors.values()))

    @property
    def exact_match(self) -> float | None:
        """Median exact match over seeds."""
        return known_median(run.result.exact_match for run in self.scored)

    @property
    def solved_seeds(self) -> int:
        """Number of seeds that solved the task."""
        return sum(accuracy >= SOLVED for accuracy in self.accuracies.values())

    @property
    def reads_own_answers(self) -> bool:
        """True if any run was also scored while the model read its own answers."""
        return any(cell.free_running is not None for run in self.scored for cell in run.result.cells)

    @property
    def state_elements(self) -> int | None:
        """Number of elements of the recurrent state after the longest cell."""
        state = self.example.result.state
        return state.elements if state else None

    @cached_property
    def example_outline(self) -> Outline:
        """The run from which sizes are read, in outline: the first that ended well, where there is one."""
        return next((run for run in self.runs if run.status == "ok"), self.runs[0])

    @property
    def example(self) -> MeasuredRun:
        """The run from which sizes are read."""
        return self.load(self.example_outline.id)

    @property
    def declarations(self) -> tuple[ArchitectureDeclaration, ...]:
        """The declarations of its architectures, by place in the pattern."""
        return self.example_outline.setting.declarations

    @property
    def state_bytes(self) -> int | None:
        """Size of the recurrent state after the longest cell, in bytes."""
        state = self.example.result.state
        return state.bytes if state else None

    @property
    def rise(self) -> float:
        """Median over seeds of the rise in validation accuracy over the last third of the updates.

        It is 0 for runs that ended as they were accurate enough: more updates were not wanted.
        """
        rises = [
            late_rise(run.curve) if run.result.steps == run.spec["train"]["steps"] else 0.0
            for run in self.scored
            if len(run.curve) > 1
        ]
        return known_median(rises) or 0.0

    @cached_property
    def factors(self) -> tuple[tuple[str, dict[str, Any]], ...]:
        """Name and parameters of each mixer under study, without those that set its size or always name it.

        Layers that only stand in front of a mixer are left out.
        """
        parts = zip(self.example_outline.setting.spec["arch"], self.declarations, strict=True)
        return tuple(
            (part["name"], {name: value for name, value in part["params"].items() if name not in told(one)})
            for part, one in parts
            if not one.short_range
        )

    @cached_property
    def kind(self) -> str:
        """The architecture without its size: equal for an entry at another width, budget or optimiser."""
        setting = self.example_outline.setting
        return family_of(setting.arch, setting.declarations)

    @cached_property
    def outer_fields(self) -> dict[str, str]:
        """The fields of its specification outside of the architecture, as JSON by dotted path."""
        fields = {**FORMER_VALUES, **flatten(self.example_outline.setting.spec)}
        return {key: value for key, value in fields.items() if key[:5] != "arch."}

    @property
    def at_edge(self) -> bool:
        """True if the chosen rate is the lowest or highest of a sweep."""
        return len(self.rates) > 1 and self.rate in (self.rates[0].rate, self.rates[-1].rate)

    @cached_property
    def missing(self) -> tuple[tuple[int, float], ...]:
        """Pairs of a tuning seed and a learning rate of the sweep that did not run together."""
        there = {(run.seeds, run.lr) for run in self.runs if run.seeds in self.choosing_seeds}
        grid = set(itertools.product(self.choosing_seeds, {rate for _, rate in there}))
        return tuple((seeds[0], rate) for seeds, rate in sorted(grid - there))

    def in_cell(self, label: str) -> dict[Seeds, float]:
        """Return the accuracy in a cell, by seed; 0 for a diverged run."""
        if label not in self.cell_accuracies:
            self.cell_accuracies[label] = {
                seeds_of(run): cell.accuracy if cell else 0.0
                for run in self.scored
                if (cell := cell_of(run, label)) or run.result.status == "diverged"
            }
        return self.cell_accuracies[label]

    def median_in(self, label: str) -> float | None:
        """Return the median accuracy in a cell over seeds."""
        return known_median(list(self.in_cell(label).values()))


def told(declared: ArchitectureDeclaration) -> set[str]:
    """Return the parameters of an architecture that set its size or that its label always names."""
    return {*declared.size_parameters, *declared.shown}


def late_rise(curve: Curve) -> float:
    """Return the rise in validation accuracy since the last validation within two thirds of the updates, or the first.

    >>> late_rise(((100, 0.2), (200, 0.5), (300, 0.75)))
    0.25
    """
    last, accuracy = curve[-1]
    early = [point for point in curve if 3 * point[0] <= 2 * last] or curve[:1]
    return accuracy - early[-1][1]


def cell_of(run: MeasuredRun, label: str) -> CellScore | None:
    """Return the score of a run in a cell."""
    return next((cell for cell in run.result.cells if cell.label == label), None)


def field_median(entry: Entry, label: str, field: str, lacking: float = 0.0) -> float | None:
    """Return the median over seeds of a field of the score in a cell; `lacking` stands for a missing score."""
    return known_median(getattr(cell_of(run, label), field, lacking) for run in entry.scored)


def known_median(values: Iterable[float | None]) -> float | None:
    """Return the median of the values that are not None; None where there are none."""
    known = [value for value in values if value is not None]
    return median(known) if known else None
