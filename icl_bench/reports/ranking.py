"""What may be ranked, and what the ranking is.

Entries are ranked among those of equal state, where there are such groups, else all together. A cell ranks nothing
where every entry solves it or none is above its floor. Where cells remain, the entry with the best median is held
against each other one by paired differences over common seeds, adjusted by Holm's method for all pairs there are,
since the best was not known beforehand. A difference is claimed only from two seeds up, and only if the median over the
whole sweep of learning rates, on validation, agrees: otherwise the learning rate decides it, not the architecture.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from icl_bench.reports.analysis import SOLVED, CellInfo, Entry, Section
from icl_bench.reports.statistics import (
    Difference,
    Interval,
    fisher_exact,
    holm,
    median,
    paired_difference,
    permutation_p,
)
from icl_bench.runs.outline import Seeds

Z = 1.959964
"""Normal quantile of a two-sided 95 %."""
SIGNIFICANT = 0.05
STATE_TOLERANCE = 1 - 0.95 / 1.05
"""Difference, relative to the larger, up to which states count as matched: each may be 5 % from their target."""

Verdict = Literal["ranks", "saturated", "at the floor", "floor is 1", "no results"]
Outcome = Literal["ahead", "not separated", "rate decides", "not compared"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


class Comparison(NamedTuple):
    """The best entry against another."""

    other: Entry
    difference: Difference | None
    """Of accuracy, mean over the cells that rank; none below two common seeds."""
    p: float
    """Adjusted for the number of pairs; 1 where there is no difference to test."""
    solved_p: float
    """Fisher's exact test on the numbers of seeds that solve, not adjusted."""
    median_p: float
    """Permutation test of the medians over seeds, which need not be common; not adjusted."""
    learnable: bool
    """Whether the median over the sweep of learning rates agrees in sign."""

    @property
    def outcome(self) -> Outcome:
        """What is claimed."""
        if self.difference is None:
            return "not compared"
        if self.p >= SIGNIFICANT or self.difference.mean <= 0:
            return "not separated"
        return "ahead" if self.learnable else "rate decides"


@dataclass(frozen=True)
class Ranking:
    """The outcome of comparing entries, all of a section or those of equal state."""

    entries: tuple[Entry, ...]
    """What was compared."""
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

    @property
    def most_seeds(self) -> int:
        """Seeds of the entry that has most."""
        return max((len(entry.accuracies) for entry in self.entries), default=0)


def rankings(section: Section) -> list[Ranking]:
    """A ranking for each group of equal state, by state; one of all entries where there is at most one such group."""
    groups = [group for group in state_groups(section.entries) if len(group) > 1]
    return [rank(section, group) for group in (groups if len(groups) > 1 else [section.entries])]


def state_groups(entries: Sequence[Entry]) -> list[tuple[Entry, ...]]:
    """Entries of equal state, each within 5 % of one size, by state."""
    known = sorted((entry.state_elements, i) for i, entry in enumerate(entries) if entry.state_elements is not None)
    groups: list[list[int]] = []
    start = 0
    for size, i in known:
        if not groups or size - start > STATE_TOLERANCE * size:
            groups.append([])
            start = size
        groups[-1].append(i)
    return [tuple(entries[i] for i in sorted(group)) for group in groups]


def rank(section: Section, entries: tuple[Entry, ...]) -> Ranking:
    """Compare entries of a section."""
    verdicts = judge_cells(section, entries)
    labels = [label for label, verdict in verdicts.items() if verdict == "ranks"]
    scores = {entry.label: seed_scores(entry, labels) for entry in entries}
    scored = [entry for entry in entries if scores[entry.label]]
    if len(scored) < 2 or not labels:
        return Ranking(entries, verdicts, None, ())
    best = max(scored, key=lambda entry: median(list(scores[entry.label].values())))
    adjusted = adjusted_pairs(scores, scored)
    rows = [compare(best, other, scores, adjusted) for other in scored if other is not best]
    return Ranking(entries, verdicts, best, tuple(rows))


def adjusted_pairs(scores: dict[str, dict[Seeds, float]], entries: Sequence[Entry]) -> dict[frozenset[str], float]:
    """Adjusted p of each pair of entries, by their labels."""
    pairs = [frozenset((a.label, b.label)) for a, b in itertools.combinations(entries, 2)]
    found = [difference_of(*(scores[label] for label in sorted(pair))) for pair in pairs]
    return dict(zip(pairs, holm([difference.p if difference else 1.0 for difference in found]), strict=True))


def compare(
    best: Entry, other: Entry, scores: dict[str, dict[Seeds, float]], adjusted: dict[frozenset[str], float]
) -> Comparison:
    """The best entry against another."""
    return Comparison(
        other=other,
        difference=difference_of(scores[best.label], scores[other.label]),
        p=adjusted[frozenset((best.label, other.label))],
        solved_p=fisher_exact((best.solved, other.solved), (len(best.accuracies), len(other.accuracies))),
        median_p=permutation_p(*(list(scores[entry.label].values()) for entry in (best, other))),
        learnable=sweep_agrees(best, other),
    )


def judge_cells(section: Section, entries: Sequence[Entry]) -> dict[str, Verdict]:
    """What each cell is good for, by label."""
    return {cell.label: judge_cell(section, entries, cell) for cell in section.cells}


def judge_cell(section: Section, entries: Sequence[Entry], cell: CellInfo) -> Verdict:
    """Whether a cell can rank these entries."""
    medians = [median(list(found.values())) for entry in entries if (found := entry.in_cell(cell.label))]
    floor = section.floors[cell.label].accuracy
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
    """Whether all entries carry the same state, each within 5 % of one size."""
    sizes = [entry.state_elements for entry in entries]
    known = [size for size in sizes if size is not None]
    return len(known) == len(sizes) and max(known) - min(known) <= STATE_TOLERANCE * max(known)


def difference_interval(difference: Difference) -> Interval:
    """The interval of a difference of shares, kept within [-1, 1]."""
    return Interval(max(-1.0, difference.low), min(1.0, difference.high))
