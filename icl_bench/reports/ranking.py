"""What may be ranked, and what the ranking is.

A cell ranks nothing where every entry solves it or none is above its floor. Where cells remain, the entry with the best
median is held against each other entry by paired differences over common seeds, adjusted by Holm's method. A difference
is claimed only from two seeds up, and only if the median over the whole sweep of learning rates, on validation, agrees:
otherwise the learning rate decides it, not the architecture.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from icl_bench.reports.analysis import SOLVED, CellInfo, Entry, Section, Seeds
from icl_bench.reports.statistics import Difference, holm, median, paired_difference

Z = 1.959964
"""Normal quantile of a two-sided 95 %."""
SIGNIFICANT = 0.05
STATE_TOLERANCE = 0.05
"""Relative difference up to which states count as matched."""

Verdict = Literal["ranks", "saturated", "at the floor", "floor is 1", "no results"]


class Comparison(NamedTuple):
    """The best entry against another."""

    other: Entry
    difference: Difference | None
    """Of accuracy, mean over the cells that rank; none below two common seeds."""
    p: float
    """Adjusted for the number of comparisons; 1 where there is no difference to test."""
    learnable: bool
    """Whether the median over the sweep of learning rates agrees in sign."""

    @property
    def separated(self) -> bool:
        """Whether a difference is claimed."""
        return self.difference is not None and self.p < SIGNIFICANT and self.learnable


@dataclass(frozen=True)
class Ranking:
    """The outcome of comparing the entries of a section."""

    verdicts: dict[str, Verdict]
    """What each cell is good for, by label."""
    best: Entry | None
    """The entry with the best median over the cells that rank; none where nothing can be ranked."""
    comparisons: tuple[Comparison, ...]
    """The best entry against each other one."""

    @property
    def ranking_cells(self) -> list[str]:
        """Labels of the cells that rank."""
        return [label for label, verdict in self.verdicts.items() if verdict == "ranks"]


def rank(section: Section) -> Ranking:
    """Compare the entries of a section."""
    verdicts = {cell.label: judge_cell(section, cell) for cell in section.cells}
    labels = [label for label, verdict in verdicts.items() if verdict == "ranks"]
    scores = {entry.label: seed_scores(entry, labels) for entry in section.entries}
    scored = [entry for entry in section.entries if scores[entry.label]]
    if len(scored) < 2 or not labels:
        return Ranking(verdicts, None, ())
    best = max(scored, key=lambda entry: median(list(scores[entry.label].values())))
    others = [entry for entry in scored if entry is not best]
    found = [difference_of(scores[best.label], scores[other.label]) for other in others]
    adjusted = holm([difference.p if difference else 1.0 for difference in found])
    rows = zip(others, found, adjusted, strict=True)
    return Ranking(verdicts, best, tuple(Comparison(o, d, p, sweep_agrees(best, o)) for o, d, p in rows))


def judge_cell(section: Section, cell: CellInfo) -> Verdict:
    """Whether a cell can rank."""
    medians = [median(list(found.values())) for entry in section.entries if (found := entry.in_cell(cell.label))]
    floor, _ = section.floor(cell.label)
    if not medians:
        return "no results"
    if floor >= SOLVED:
        return "floor is 1"
    if min(medians) >= SOLVED:
        return "saturated"
    if max(medians) <= floor + floor_error(floor, section.examples):
        return "at the floor"
    return "ranks"


def floor_error(floor: float, examples: int) -> float:
    """Sampling error of a share equal to the floor over so many examples, 95 %: what a solver at the floor may show."""
    return Z * math.sqrt(floor * (1 - floor) / examples)


def seed_scores(entry: Entry, labels: Sequence[str]) -> dict[Seeds, float]:
    """Mean accuracy over cells by seed; seeds that lack a cell are left out."""
    cells = [entry.in_cell(label) for label in labels]
    common = set.intersection(*(set(cell) for cell in cells)) if cells else set()
    return {seeds: sum(cell[seeds] for cell in cells) / len(cells) for seeds in sorted(common)}


def difference_of(first: dict[Seeds, float], second: dict[Seeds, float]) -> Difference | None:
    """Paired difference over the seeds that both have; none below two."""
    common = sorted(first.keys() & second.keys())
    if len(common) < 2:
        return None
    return paired_difference([first[seeds] for seeds in common], [second[seeds] for seeds in common])


def sweep_agrees(best: Entry, other: Entry) -> bool:
    """Whether the best entry is ahead in the median over the sweep too; true where either ran at one rate only."""
    if min(len(best.rates), len(other.rates)) < 2:
        return True
    return sweep_median(best) > sweep_median(other)


def sweep_median(entry: Entry) -> float:
    """Median over learning rates of the validation score."""
    return median([max(0.0, rate.score) for rate in entry.rates])


def matched_state(entries: Sequence[Entry]) -> bool:
    """Whether all entries carry the same state, within 5 % of the largest."""
    sizes = [entry.state_elements for entry in entries]
    known = [size for size in sizes if size is not None]
    return len(known) == len(sizes) and max(known) - min(known) <= STATE_TOLERANCE * max(known)
